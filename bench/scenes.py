"""Objectives compared on scenes: one teacher, one student to start from, each case on the same seeds and steps.

    python -m bench.scenes runs/scenes                  # trains what is missing, scores it, appends rows
    python -m bench.scenes runs/scenes --seeds 0 1 2 --cases ce ce+kl

Teacher and the student that all start from are of seed 0, whatever the seed of a case: seeds vary the order of the data
and which k a step reads. Every case is scored at k=1, and `CURVE` at every k. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.runs import METRICS, scored, trained
from bench.scores import add_new, conclude, of_run

CASES: dict[str, list[str]] = {
    "ce": ["objectives=[{name: cross_entropy}]", "teacher=null"],
    "ce+kl": [],
    # the student's layers were cut from the teacher's: each is matched with the one that it was
    "ce+kl+attention": [
        "objectives=[{name: cross_entropy}, {name: forward_kl}, "
        "{name: voco_attention, weight: 0.5, layers: [[0, 0], [1, 1], [2, 3], [3, 5]]}]"
    ],
}
CURVE = "ce+kl"
PAIRS = [("ce+kl", "ce"), ("ce+kl+attention", "ce"), ("ce+kl+attention", "ce+kl")]
BENCH = "scenes"


def compared(out: Path, seeds: list[int], cases: list[str]) -> None:
    """Train, score, and append what has no row yet."""
    teacher = trained("train", "scenes/teacher", out / "teacher", 0, [])
    start = [f"student.init={teacher / 'model'}"]
    compress = trained("train", "scenes/compress", out / "compress", 0, start)
    scored(teacher, ["full"], blind=True)
    read = trained("train", "scenes/read", out / "read", 0, [f"student.init={compress / 'model'}"])
    start = [f"student.init={read / 'model'}"]
    with_teacher = [*start, f"teacher.model={teacher / 'model'}"]
    runs = {("teacher", 0): teacher}
    for seed in seeds:
        for case in cases:
            alone = "teacher=null" in CASES[case]
            settings = [*(start if alone else with_teacher), *CASES[case]]
            run = trained("train" if alone else "distill", "scenes/distill", out / f"{case}-{seed}", seed, settings)
            scored(run, [1, 2, 4, 8, "full"] if case == CURVE else [1])
            runs[case, seed] = run
    for (case, _), run in runs.items():
        add_new(BENCH, [row for metric in METRICS for row in of_run(BENCH, case, run, metric)])
    pairs = [pair for pair in PAIRS if set(pair) <= set(cases)]
    conclude(BENCH, pairs if len(seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.scenes", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    asked = parser.parse_args(sys.argv[1:])
    compared(asked.out, asked.seeds, asked.cases)
