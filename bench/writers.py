"""A writer that teaches itself: SmolLM2's programs for questions about scenes, round by round.

    python -m bench.writers runs/writers
    python -m bench.writers runs/writers --again 2    # the first round, too, where it asks again what has no program

For each seed, of scenes and samples, `mmkd programs scenes/programs` writes programs for questions that many pictures
share (shared_questions.py), tunes the writer on those that held, and writes again (docs/programs.md). Of each round the
first sample alone counts as k=1, all as k=5, so that both are of one writer. What a verified program is worth is asked
of new scenes (false_accepts.py). A killed run is gone on with, and a seed whose rows are there is left alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.false_accepts import accepted, shares, try_elsewhere
from bench.rows import RESULTS, Row, config_hash, surroundings
from bench.scores import add_new, by_case, conclude
from bench.shared_questions import shared_questions
from mmkd.config.load import load_as
from mmkd.config.programs_schema import AgainSection, ProgramsConfig
from mmkd.synthesis.programs.making.rounds import make_rounds, of_round
from mmkd.synthesis.programs.making.run import make_programs
from mmkd.synthesis.programs.runner import Runner

BENCH = "writers"
ELSEWHERE = {"seed": 1_000, "each": 40, "most": 4_000}  # new scenes: their seed, for each program, looked through
SEARCHED = 3_000  # scenes in which questions for so many pictures are looked for
WRONG = 0.05  # of new scenes that a program may be wrong on, as in bench.programs


def settings_of(asked: argparse.Namespace, seed: int) -> ProgramsConfig:
    out = asked.out / f"seed-{seed}"
    rows = shared_questions(out, seed, asked.questions, asked.pictures, SEARCHED)
    data = f"data=[{{source: jsonl, path: {rows}}}]"
    seeds = [f"sampling.seed={1000 * seed}", f"tune.seed={seed}", f"seed={seed}"]
    return load_as("scenes/programs", [data, *seeds, f"out={out}", *asked.set], ProgramsConfig)


def changed(config: ProgramsConfig, number: int, name: str, **changes: Any) -> Path:
    """What a finished round would have been with other settings: its store has the samples that both have."""
    whole = of_round(config, number)
    run = Path(f"{whole.out}-{name}")
    if not (run / "yield.json").exists():
        shutil.copytree(Path(whole.out) / "asked", run / "asked", dirs_exist_ok=True)
        make_programs(whole.model_copy(update={"out": str(run), **changes}), round=number)
    return run


def of_yield(run: Path) -> Iterator[tuple[str, float, str]]:
    """(what, value, unit): per cent of rows that ran, were right, were verified, in all and by type of question."""
    for kind, found in json.loads((run / "yield.json").read_text()).items():
        of_kind = "" if kind == "all" else f"_{kind}"
        for what in ("ran", "right", "verified") if kind == "all" else ("verified",):
            yield f"{what}{of_kind}", 100 * found[what] / found["rows"], "% of questions"


def of_truth(run: Path) -> Iterator[tuple[str, float, str]]:
    """As `of_yield`: of verified programs, and of rationales, those that are false on new scenes."""
    programs, drawn = accepted(run)
    with Runner() as runner:
        try_elsewhere(programs, drawn, runner, **ELSEWHERE)
    found = shares(programs, WRONG)
    yield "tried", found["all"]["tried"], "programs"
    yield "false_accepts", found["all"]["false_accepts"], "% of programs"
    yield "false_records", found["all"]["false_records"], "% of rationales"
    for kind, values in found.items():
        if kind != "all":
            yield f"false_accepts_{kind}", values["false_accepts"], "% of programs"


def compared(asked: argparse.Namespace) -> None:
    """Write, tune, verify, and append what has no row yet."""
    command = f"python -m bench.writers {asked.out}"
    for seed in asked.seeds:
        config, around = settings_of(asked, seed), surroundings()
        if not (Path(config.out) / "yield.json").exists():
            make_rounds(config)
        digest = config_hash(config.model_dump(mode="json", exclude={"out"}))
        rounds = config.tune.rounds if config.tune else 0
        for number in range(rounds + 1):
            many = f"k={config.samples}"
            runs = {many: Path(of_round(config, number).out), "k=1": changed(config, number, "first", samples=1)}
            if asked.again and number == 0:
                again = AgainSection(times=asked.again)
                runs[f"{many}, again"] = changed(config, number, f"again-{asked.again}", again=again)
            for case, run in runs.items():
                name = f"{case} round={number}"
                if f"false_accepts@{name}" in _of_seed(seed, asked.results):
                    continue
                add_new(BENCH, [
                    Row(
                        f"{BENCH}_seeds", f"{what}@{name} seed {seed}", value, unit, (seed,), None, None, command,
                        digest, **around,
                    )
                    for what, value, unit in (*of_yield(run), *of_truth(run))
                ], asked.results)  # fmt: skip
    pairs = [(f"k={settings_of(asked, asked.seeds[0]).samples}", "k=1")] if len(asked.seeds) > 1 else []
    conclude(BENCH, pairs, ["verified"], asked.results)


def _of_seed(seed: int, results: Path) -> set[str]:
    if not (results / f"{BENCH}_seeds.jsonl").exists():
        return set()
    return {name for name, rows in by_case(BENCH, results).items() if seed in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.writers", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of scenes, samples and tuning")
    parser.add_argument("--questions", type=int, default=25, help="of each of five types, for each seed")
    parser.add_argument("--pictures", type=int, default=40, help="for each question")
    parser.add_argument("--again", type=int, default=0, help="times that round 0 asks again what has no program")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of scenes/programs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    compared(parser.parse_args())
