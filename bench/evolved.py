"""Evolved questions against those that they grew from (MMEvol): one start, the same images, equal steps and tokens.

    python -m bench.evolved runs/evolved --start runs/scenes/compress/model
    python -m bench.evolved runs/evolved --start runs/scenes/compress/model --blind    # the embedded test of blindness

For each seed the questions of the same scenes evolve for three rounds (configs/evolve/scenes.yaml), and a student
learns by labels (configs/scenes/read.yaml) from each of `CASES`. All cases train on as many rows, of the same images in
the same order; only which questions a row asks differs, and of those it takes as many as bring every case to the same
number of text tokens (see `filled`), which metrics.jsonl has to confirm. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rows import RESULTS, Row, config_hash, surroundings
from bench.runs import scored, trained
from bench.scores import add_new, conclude, of_run
from mmkd.compose import compose_processor
from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_as, load_config
from mmkd.config.schema import Config
from mmkd.data.images import read_image
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import DataError
from mmkd.report.run_folder import read_metrics
from mmkd.synthesis.evolving.items import Content
from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.synthesis.evolving.run import evolve
from mmkd.synthesis.rows import open_rows
from mmkd.whole_files import write_whole

BENCH = "evolved"
METRICS = ["acc", *(f"acc_{kind}" for kind in ("count", "existence", "comparison", "spatial", "two_hop"))]
CASES: dict[str, Callable[[Outcome], Content | None]] = {
    "seed": lambda one: one.current.content if one.round == 0 else None,
    "evolved": lambda one: one.current.content if one.kept else None,  # round 0 keeps the seeds
    "not eliminated": lambda one: one.current.content if one.kept else one.candidate,
}
PAIRS = [("evolved", "seed"), ("evolved", "not eliminated")]
FILL = 0.8  # of the tokens of an image's seed questions, so that the seeds alone can fill every row
NEAR = 0.001  # how far a case's tokens may be from the budget: the last row may end in a long question

Count = Callable[[Sequence[Content]], int]  # text tokens of a row that asks these questions


def filled(
    questions: Sequence[Sequence[Content]], rows: int, budget: float, count: Count, seed: int
) -> Iterator[tuple[int, list[Content]]]:
    """(image, questions) of each row: `budget` text tokens a row, on the average of all rows so far.

    Images take turns in an order drawn anew for each pass, the same for the same seed whatever they are asked. An
    image's questions come in a drawn order too, all of them before one comes again. A row takes the next one where that
    brings the tokens of all rows nearer to the budget, so what one row lacks the next ones make good.

    Args:
        questions: of each image.
    """
    order, waiting = list(range(len(questions))), [list[Content]() for _ in questions]
    spent = 0
    for row in range(rows):
        if row % len(order) == 0:
            random.Random(f"{seed}/images/{row}").shuffle(order)
        image = order[row % len(order)]
        asked: list[Content] = []
        used = 0
        while len(asked) < len(questions[image]):
            if not waiting[image]:
                again = random.Random(f"{seed}/{row}").sample(questions[image], len(questions[image]))
                waiting[image] = sorted(again, key=lambda one: one not in asked)  # taken from the end
            with_next = count([*asked, waiting[image][-1]])
            now, then = (abs(spent + tokens - (row + 1) * budget) for tokens in (used, with_next))
            if asked and now <= then:
                break
            asked.append(waiting[image].pop())
            used = with_next
        spent += used
        yield image, asked


def asked_in(journal: Journal, rounds: int, case: str) -> list[tuple[int, list[Content]]]:
    """(record, questions) of each image, in the order of the seeds."""
    found: dict[int, list[Content]] = {}
    for number in range(rounds + 1):
        for one in journal.read(number):
            if (content := CASES[case](one)) is not None:
                found.setdefault(one.index, []).append(content)
    return sorted(found.items())


def grown(out: Path, seed: int, settings: Sequence[str]) -> tuple[EvolveConfig, Journal]:
    """The rounds of a seed in OUT/evolve-SEED."""
    folder = out / f"evolve-{seed}"
    config = load_as("evolve/scenes", [*settings, f"out={folder}", f"evolver.sampling.seed={seed}"], EvolveConfig)
    if not (folder / "summary.json").exists():
        evolve(config)
    return config, Journal(folder / "rounds")


def written(file: Path, case: str, made: tuple[EvolveConfig, Journal], training: Config, seed: int) -> dict[str, int]:
    """Write the rows of a case, one for each that the training takes. Returns: counts of questions, tokens, budget.

    Raises: DataError where the case cannot be brought to the budget.
    """
    config, journal = made
    (stage,) = training.stages
    rows = stage.steps * stage.batch_size
    processor = compose_processor(training.student)

    def count(contents: Sequence[Content]) -> int:
        return len(processor.encode_turns([{"role": turn.role, "content": turn.text} for turn in turns(contents)])[0])

    seeds = [contents for _, contents in asked_in(journal, config.rounds, "seed")]
    budget = FILL * sum(map(count, seeds)) / len(seeds)
    found = asked_in(journal, config.rounds, case)
    records = open_rows(config.data)
    told = {"questions": 0, "tokens": 0, "budget": round(budget * rows)}

    def lines() -> Iterator[Record]:
        for number, (image, contents) in enumerate(filled([one for _, one in found], rows, budget, count, seed)):
            told["questions"] += len(contents)
            told["tokens"] += count(contents)
            index = found[image][0]
            picture = file.parent / "images" / str(index)
            if not picture.exists():
                write_whole(picture, [read_image(records[index].images[0])])
            provenance = Provenance(
                parent=records[index].id, engine="evolve", license=records[index].provenance.license
            )
            yield Record(f"{number}", turns(contents), [str(picture)], case, BENCH, provenance)

    write_jsonl(file, lines())
    if abs(told["tokens"] - told["budget"]) > NEAR * told["budget"]:  # images ran out of questions
        raise DataError(
            f"{case}: {rows:,} rows of {len(found):,} images hold {told['tokens']:,} tokens, not the "
            f"{told['budget']:,} of every case. Take more questions of an image (per_image), or more steps."
        )
    return told


def turns(contents: Sequence[Content]) -> list[Turn]:
    return [turn for one in contents for turn in (Turn("user", one.question), Turn("assistant", one.answer))]


@dataclass(frozen=True)
class Case:
    """One run: its folder, the overrides of scenes/read that it trains with, and what its rows hold (see `written`)."""

    name: str
    seed: int
    run: Path
    training: list[str]
    holds: dict[str, int]


def prepared(
    out: Path, name: str, made: tuple[EvolveConfig, Journal], start: str, seed: int, settings: Sequence[str]
) -> Case:
    """A case with its rows in OUT/rows. Raises: as `written`."""
    label = f"{name.replace(' ', '-')}-{seed}"
    file, counts = out / "rows" / f"{label}.jsonl", out / "rows" / f"{label}.json"
    training = [f"student.init={start}", f"data.mixture=[{{source: jsonl, path: {file}}}]", *settings]
    file.parent.mkdir(parents=True, exist_ok=True)
    if not counts.exists():
        write_whole(counts, [json.dumps(written(file, name, made, load_config("scenes/read", training), seed))])
    return Case(name, seed, out / label, training, json.loads(counts.read_text()))


def learned(case: Case, ranks: int) -> Path:
    """The run of a case. Raises DataError where it did not train on the tokens it was given."""
    run = trained("train", "scenes/read", case.run, case.seed, case.training, ranks)
    seen = sum(metric.values["tokens"] for metric in read_metrics(run / "metrics.jsonl"))
    if seen != case.holds["tokens"]:
        raise DataError(
            f"{run}: metrics.jsonl counts {seen:,.0f} tokens, its rows hold {case.holds['tokens']:,}. The steps have "
            "to be a multiple of training.log_every, and no row may be set aside (rejected.jsonl)."
        )
    return run


def of_counts(case: Case, command: str) -> list[Row]:
    """What a run was trained on: `trained_tokens@CASE seed N` and questions."""
    digest, around = config_hash(load_config(case.run).model_dump(mode="json", exclude={"run"})), surroundings()
    return [
        Row(
            f"{BENCH}_seeds", f"trained_{name}@{case.name} seed {case.seed}", case.holds[name], name, (case.seed,),
            None, None, command, digest, **around,
        )
        for name in ("tokens", "questions")
    ]  # fmt: skip


def of_rounds(seed: int, config: EvolveConfig, command: str) -> list[Row]:
    """Yield, difficulty, steps and skills of each round: `difficulty@round=N seed S`."""
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    units = {
        "yield": "share", "difficulty of kept": "points", "difficulty of their parents": "points",
        "steps per item": "steps", "skills per item": "skills", "objects per item": "objects",
    }  # fmt: skip
    digest, around = config_hash(config.model_dump(mode="json", exclude={"out"})), surroundings()
    return [
        Row(
            f"{BENCH}_rounds_seeds", f"{name.replace(' ', '_')}@round={found['round']} seed {seed}", found[name], unit,
            (seed,), None, None, command, digest, **around,
        )
        for found in summary["rounds"]
        for name, unit in units.items()
        if found.get(name) is not None
    ]  # fmt: skip


def compared(asked: argparse.Namespace) -> None:
    """Evolve, train, score, and append what has no row yet. All rows are there before anything is trained."""
    data = f"data=[{{source: scenes, split: train, count: {asked.scenes}, grid: 2, seed: 1}}]"
    settings = [data, "per_image=4", *([] if asked.blind else ["blind=null"]), *asked.evolve]
    command = f"python -m bench.evolved {asked.out} --start {asked.start}" + " --blind" * asked.blind
    cases = []
    for seed in asked.seeds:
        made = grown(asked.out, seed, settings)
        add_new(f"{BENCH}_rounds", of_rounds(seed, made[0], command), asked.results)
        cases += [prepared(asked.out, name, made, asked.start, seed, asked.training) for name in asked.cases]
    for case in cases:
        run = learned(case, asked.ranks)
        scored(run, [1, "full"], limit=asked.limit)
        rows = [row for metric in METRICS for row in of_run(BENCH, case.name, run, metric)]
        add_new(BENCH, [*rows, *of_counts(case, command)], asked.results)
    conclude(f"{BENCH}_rounds", [], results=asked.results)
    pairs = [pair for pair in PAIRS if set(pair) <= set(asked.cases)]
    conclude(BENCH, pairs if len(asked.seeds) > 1 else [], results=asked.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.evolved", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--start", required=True, help="model folder that every student starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of evolving and training")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="what to train on")
    parser.add_argument("--scenes", type=int, default=1500, help="scenes whose questions evolve")
    parser.add_argument("--blind", action="store_true", help="drop what SmolLM2 answers without the image")
    parser.add_argument("--evolve", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of evolve/scenes")
    parser.add_argument("--training", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of scenes/read")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a training")
    parser.add_argument("--limit", type=int, help="score the first questions only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    compared(parser.parse_args())
