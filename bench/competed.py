"""Competition (CoMD) against the same student trained as long on what was there from the start.

    python -m bench.competed runs/competed-wide --start runs/scenes/compress/model --teacher runs/scenes/teacher/model
    python -m bench.competed runs/competed-simple .. --simple    # from a pool that lacks most of what is held out

All cases are `mmkd compete scenes/compete`, from one start, on one pool with the answers of one teacher, for as many
rounds of as many steps. `alone` asks nothing new: each of its rounds learns the first pool again. `undirected` asks as
many new questions as `competition`, each of another type than one drawn at random, whoever failed at what. `reworded`
is the packaged config, whose new questions are put in other words by SmolLM2; in the others they stay in the words of
their templates. Seeds vary the order of the data, and what is asked anew. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.rows import RESULTS, Row, config_hash, surroundings, with_overrides
from bench.scores import add_new, conclude
from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.load import load_as
from mmkd.report.run_folder import read_metrics
from mmkd.synthesis.competing.augmentors import Draft, Wanted, register
from mmkd.synthesis.competing.compete import compete
from mmkd.synthesis.competing.items import read_rows

WIDE = "pool=[{source: scenes, split: train, count: 1000, grid: 2, questions: 2}]"  # questions of every type
TEMPLATES = "augment.rewrite=null"  # questions in the words of their templates
CASES: dict[str, list[str]] = {
    "competition": [TEMPLATES],
    "alone": ["augment={name: nothing}", "assess=1"],  # what it fails at decides nothing
    "undirected": ["gap=9.5", "augment.hard_share=[0]", TEMPLATES],  # nobody is so far ahead: nothing is difficult
    "reworded": [],
}
PAIRS = [("competition", "alone"), ("competition", "undirected"), ("reworded", "competition"), ("reworded", "alone")]


@register("nothing")
def nothing(wanted: Wanted) -> Iterator[Draft]:
    """Asks nothing new."""
    yield from ()


def of_rounds(bench: str, case: str, config: CompeteConfig, rounds: Path, command: str) -> list[Row]:
    """Rows `METRIC@CASE round=N seed S` of the held-out split; round 0 is the start.

    score: the student's mean, 1 to 10; rise: over the round before; behind_teacher: the teacher's mean less the
    student's, of the same questions; win_rate: share of questions it answers better, ties counting half. pool: items;
    trained_tokens: text tokens of the round's training.
    """
    digest = config_hash(config.model_dump(mode="json", exclude={"out", "seed"}))
    found, around, before = [], surroundings(), None
    for row in read_rows(rounds):
        held = row["held_out"]
        figures = {
            "score": (held["student"], "points"),
            "behind_teacher": (held["teacher"] - held["student"], "points"),
            "win_rate": (100 * held["win_rate"], "%"),
            "pool": (row["pool"], "items"),
        }
        if before is not None:
            figures["rise"] = (held["student"] - before, "points")
            metrics = read_metrics(rounds.parent / f"round-{row['round']}" / "student" / "metrics.jsonl")
            figures["trained_tokens"] = (sum(metric.values["tokens"] for metric in metrics), "tokens")
        before = held["student"]
        for name, (value, unit) in figures.items():
            metric = f"{name}@{case} round={row['round']} seed {config.seed}"
            found.append(
                Row(f"{bench}_seeds", metric, value, unit, (config.seed,), None, None, command, digest, **around)
            )
    return found


def compared(asked: argparse.Namespace) -> None:
    """Run what is missing, and append what has no row yet."""
    bench = asked.bench or ("competed_simple" if asked.simple else "competed_wide")
    command = f"python -m bench.competed {asked.out} --start {asked.start} --teacher {asked.teacher}"
    command += " --simple" * asked.simple + (f" --bench {asked.bench}" if asked.bench else "")
    command = with_overrides(command, compete=asked.compete)
    given = ["pretraining=null", f"start={asked.start}", f"teacher.vlm.model={asked.teacher}"]
    given += [*([] if asked.simple else [WIDE]), *asked.compete]
    for seed in asked.seeds:
        for case in asked.cases:
            config = configured(asked.out / f"{case}-{seed}", case, seed, given)
            add_new(bench, of_rounds(bench, case, config, compete(config), command), asked.results)
    pairs = [pair for pair in PAIRS if set(pair) <= set(asked.cases)]
    conclude(bench, pairs if len(asked.seeds) > 1 else [], ["score"], asked.results)


def configured(out: Path, case: str, seed: int, given: Sequence[str]) -> CompeteConfig:
    """Of a case; never stopped early, so that both cases train equally long."""
    config = load_as("scenes/compete", [*given, *CASES[case], f"out={out}", f"seed={seed}"], CompeteConfig)
    return config.model_copy(update={"stop": config.stop.model_copy(update={"patience": config.rounds})})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.competed", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the competitions")
    parser.add_argument("--start", required=True, help="model folder that round 1 starts from")
    parser.add_argument("--teacher", required=True, help="model folder of the teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to run")
    parser.add_argument("--simple", action="store_true", help="the packaged pool: counts, and whether there is any")
    parser.add_argument("--bench", help="name of the rows: another one for what is measured in another way")
    parser.add_argument("--compete", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of scenes/compete")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    compared(parser.parse_args())
