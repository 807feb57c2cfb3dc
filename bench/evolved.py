"""Evolved questions against those that they grew from (MMEvol): one start, the same images, equal steps and tokens.

    python -m bench.evolved runs/evolved --start runs/scenes/compress/model
    python -m bench.evolved runs/evolved --start runs/scenes/compress/model --blind    # the embedded test of blindness
    python -m bench.evolved runs/evolved-simple --start runs/scenes/compress/model --simple    # from simple seeds

For each seed the questions of the same scenes evolve for three rounds (configs/evolve/scenes.yaml), and a student
learns by labels (configs/scenes/read.yaml) from each of `CASES`. All cases train on as many rows, of the same images in
the same order; only which questions a row asks differs, and of those it takes as many as bring every case to the same
number of text tokens (equal_tokens.py), which metrics.jsonl has to confirm. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.equal_tokens import Picture, add_options, count_of, measure, prepared
from bench.rows import Row, config_hash, surroundings, with_overrides
from bench.scores import add_new, conclude
from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_as, load_config
from mmkd.data.records import Turn
from mmkd.synthesis.evolving.items import Content
from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.synthesis.evolving.run import evolve
from mmkd.synthesis.rows import open_rows

BENCH = "evolved"
CASES: dict[str, Callable[[Outcome], Content | None]] = {
    "seed": lambda one: one.current.content if one.round == 0 else None,
    "evolved": lambda one: one.current.content if one.kept else None,  # round 0 keeps the seeds
    "not eliminated": lambda one: one.current.content if one.kept else one.candidate,
    # Of rounds of their own:
    "no interaction": lambda one: one.current.content if one.kept else None,
    "image needed": lambda one: one.current.content if one.kept else None,
}
ROUNDS = {  # what their rounds set otherwise
    "no interaction": ["directions={perceptual: 1, cognitive: 1, interaction: 0}"],
    "image needed": [
        "blind={model: {language: {source: 'gguf:smollm2-135m', batch_size: 64}}, temperature: 0.3, max_tokens: 12}"
    ],
}
PAIRS = [
    ("evolved", "seed"), ("evolved", "not eliminated"), ("no interaction", "seed"), ("no interaction", "evolved"),
    ("image needed", "seed"), ("image needed", "evolved"), ("image needed", "not eliminated"),
]  # fmt: skip
FILL = 0.8  # of the tokens of an image's seed questions, so that the seeds alone can fill every row


def asked_in(journal: Journal, rounds: int, case: str) -> list[tuple[int, list[Content]]]:
    """(record, questions) of each image, in the order of the seeds."""
    found: dict[int, list[Content]] = {}
    for number in range(rounds + 1):
        for one in journal.read(number):
            if (content := CASES[case](one)) is not None:
                found.setdefault(one.index, []).append(content)
    return sorted(found.items())


def grown(out: Path, case: str, seed: int, settings: Sequence[str]) -> tuple[EvolveConfig, Journal]:
    """The rounds that a case takes its questions from: those of its seed, in OUT/evolve-SEED, or its own."""
    folder = out / (f"evolve-{seed}" if case not in ROUNDS else f"evolve-{case.replace(' ', '-')}-{seed}")
    settings = [*settings, *ROUNDS.get(case, [])]
    config = load_as("evolve/scenes", [*settings, f"out={folder}", f"evolver.sampling.seed={seed}"], EvolveConfig)
    if not (folder / "summary.json").exists():
        evolve(config)
    return config, Journal(folder / "rounds")


def pictures(made: tuple[EvolveConfig, Journal], case: str) -> list[Picture]:
    """The images that evolved, each with what a case asks about it."""
    config, journal = made
    records = open_rows(config.data)
    return [
        Picture(records[index], [(Turn("user", one.question), Turn("assistant", one.answer)) for one in contents])
        for index, contents in asked_in(journal, config.rounds, case)
    ]


def of_rounds(bench: str, case: str, seed: int, config: EvolveConfig, command: str) -> list[Row]:
    """Yield, difficulty, steps and skills of each round: `difficulty@round=N seed S`; of rounds of a case's own,
    `difficulty@CASE round=N seed S`."""
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    units = {
        "yield": "share", "difficulty of kept": "points", "difficulty of their parents": "points",
        "difficulty per item": "points",
        "steps per item": "steps", "skills per item": "skills", "objects per item": "objects",
    }  # fmt: skip
    digest, around = config_hash(config.model_dump(mode="json", exclude={"out"})), surroundings()
    of = f"{case} " if case in ROUNDS else ""
    return [
        Row(
            f"{bench}_rounds_seeds", f"{name.replace(' ', '_')}@{of}round={found['round']} seed {seed}", found[name],
            unit, (seed,), None, None, command, digest, **around,
        )
        for found in summary["rounds"]
        for name, unit in units.items()
        if found.get(name) is not None
    ]  # fmt: skip


def compared(asked: argparse.Namespace) -> None:
    """Evolve, train, score, and append what has no row yet. All rows are there before anything is trained."""
    bench = asked.bench or (f"{BENCH}_simple" if asked.simple else BENCH)
    types = ", types: [count, existence]" * asked.simple
    data = f"data=[{{source: scenes, split: train, count: {asked.scenes}, grid: 2, seed: 1{types}}}]"
    settings = [data, "per_image=4", *([] if asked.blind else ["blind=null"]), *asked.evolve]
    command = f"python -m bench.evolved {asked.out} --start {asked.start}"
    command += " --blind" * asked.blind + " --simple" * asked.simple
    command += f" --bench {asked.bench}" if asked.bench else ""
    command = with_overrides(command, training=asked.training, evolve=asked.evolve)
    training = [f"student.init={asked.start}", *asked.training]
    count, cases = count_of(load_config("scenes/read", training)), []
    for seed in asked.seeds:
        made = {name: grown(asked.out, name, seed, settings) for name in asked.cases}
        for name, (config, _) in made.items():
            add_new(f"{bench}_rounds", of_rounds(bench, name, seed, config, command), asked.results)
        seeds = pictures(next(iter(made.values())), "seed")
        budget = FILL * sum(count(one.asked) for one in seeds) / len(seeds)
        cases += [
            prepared(asked.out, bench, name, seed, pictures(of, name), training, budget) for name, of in made.items()
        ]
    conclude(f"{bench}_rounds", [], results=asked.results)
    measure(bench, cases, PAIRS, command, asked)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.evolved", description=__doc__.splitlines()[0])
    add_options(parser, list(CASES))
    parser.add_argument("--scenes", type=int, default=1500, help="scenes whose questions evolve")
    parser.add_argument("--blind", action="store_true", help="drop what SmolLM2 answers without the image")
    parser.add_argument("--simple", action="store_true", help="seeds that count things or ask whether there are any")
    parser.add_argument(
        "--bench", help="name of the rows (evolved, or evolved_simple): another for what is measured in another way"
    )
    parser.add_argument("--evolve", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of evolve/scenes")
    compared(parser.parse_args())
