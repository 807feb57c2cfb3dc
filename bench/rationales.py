"""What rationales add (Visual Program Distillation): students of answers and rationales, and of answers alone.

    python -m bench.rationales runs/rationales --start START --writer runs/writers/seed-1/round-1/writer

A tuned writer's programs give rationales for the questions of scenes (`mmkd programs scenes/programs`, three samples a
question). From one START, runs/scenes/compress/model, students learn by labels (configs/scenes/read.yaml) from rows of
the same images in the same order: `rationales`, the answers and, beside them, the rationales; `answers`, so many more
questions as bring a row to the same text tokens; `same questions`, the rows of `rationales` without these. `plain` and
`plain questions` are the same two with rationales that give no boxes, so that more of them make a row. A killed run is
gone on with.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bench.equal_tokens import Count, Picture, add_options, count_of, measure, prepared
from bench.rows import Row, config_hash, surroundings, with_overrides
from bench.scores import add_new, conclude
from mmkd.config.load import load_as, load_config
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.record_files import jsonl
from mmkd.synthesis.programs.making.run import make_programs

BENCH = "rationales"
TAUGHT = "data.rationales={mode: separate}"
CASES = ["answers", "rationales", "same questions", "plain", "plain questions"]
PAIRS = [
    ("rationales", "answers"), ("rationales", "same questions"), ("plain", "answers"), ("plain", "plain questions"),
]  # fmt: skip
FILL = 0.8  # of the tokens of all answers about an image, so that these alone can fill every row


def told(out: Path, writer: Path, scenes: int, boxes: bool = True) -> Path:
    """OUT/programs, with the rationales of all scenes; without boxes OUT/plain, from the same programs."""
    run = out / ("programs" if boxes else "plain")
    if not boxes and not run.exists():
        shutil.copytree(told(out, writer, scenes) / "asked", run / "asked")
        shutil.copy(out / "programs" / "verdicts.jsonl", run)
    config = load_as(
        "scenes/programs",
        [
            f"data=[{{source: scenes, split: train, count: {scenes}, grid: 2, single: true, seed: 1}}]",
            f"writer.language.source=local:{writer}", "tune=null", "examples=0", "samples=3",
            f"boxes={str(boxes).lower()}", f"out={run}",
        ],
        ProgramsConfig,
    )  # fmt: skip
    if not (run / "yield.json").exists():
        make_programs(config)
    return run


def pictures(run: Path) -> list[Picture]:
    """Each scene with its questions, answers and, where a program held, rationales."""
    found: dict[str, Picture] = {}
    for record in jsonl(str(run / "records.jsonl")):
        question, answer = record.turns
        found.setdefault(str(record.images[0]), Picture(record, [])).asked.append((question, answer))
    return list(found.values())


def of_questions(case: str, known: list[Picture], spoken: Count, silent: Count, command: str) -> list[Row]:
    """How many questions have a rationale, and the text tokens of one that has, with its rationale and without."""
    every = [one for picture in known for one in picture.asked]
    with_one = [one for one in every if one[1].rationale is not None]
    figures = {
        "told": (100 * len(with_one) / len(every), "% of questions"),
        "tokens_with": (sum(spoken([one]) for one in with_one) / len(with_one), "tokens"),
        "tokens_without": (sum(silent([one]) for one in with_one) / len(with_one), "tokens"),
    }
    digest, around = config_hash({"pictures": len(known), "questions": len(every)}), surroundings()
    return [
        Row(f"{BENCH}_rows_seeds", f"{what}@{case} seed 1", value, unit, (1,), None, None, command, digest, **around)
        for what, (value, unit) in figures.items()
    ]


def compared(asked: argparse.Namespace) -> None:
    """Write programs, train, score, and append what has no row yet. All rows are there before anything is trained."""
    command = f"python -m bench.rationales {asked.out} --start {asked.start} --writer {asked.writer}"
    command = with_overrides(command, training=asked.training)
    boxed, plain = (pictures(told(asked.out, asked.writer, asked.scenes, boxes)) for boxes in (True, False))
    base = [f"student.init={asked.start}", *asked.training]
    silent, spoken = (count_of(load_config("scenes/read", settings)) for settings in (base, [*base, TAUGHT]))
    for case, known in (("boxes", boxed), ("no boxes", plain)):
        add_new(f"{BENCH}_rows", of_questions(case, known, spoken, silent, command), asked.results)
    conclude(f"{BENCH}_rows", [], results=asked.results)
    budget = FILL * sum(silent(one.asked) for one in boxed) / len(boxed)
    taught = {  # what is known of the images, settings of the case, and by which tokens its rows are filled
        "answers": (boxed, base, silent),
        "rationales": (boxed, [*base, TAUGHT], spoken),
        "same questions": (boxed, base, spoken),
        "plain": (plain, [*base, TAUGHT], spoken),
        "plain questions": (plain, base, spoken),
    }
    cases = []
    for seed in asked.seeds:
        for name in asked.cases:
            known, settings, count = taught[name]
            cases.append(prepared(asked.out, BENCH, name, seed, known, settings, budget, count))
    measure(BENCH, cases, PAIRS, command, asked)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.rationales", description=__doc__.splitlines()[0])
    add_options(parser, CASES)
    parser.add_argument("--writer", type=Path, required=True, help="folder of the tuned writer (bench.writers)")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes of ten questions")
    compared(parser.parse_args())
