"""Objectives compared from the first step: the demo's student, k=1, before it has learned to read its tokens.

    python -m bench.objectives runs/objectives runs/demo/teacher/model    # trains what is missing, appends rows
    python -m bench.objectives runs/objectives runs/demo/teacher/model --seeds 0 --cases ce

Every case starts from the teacher's own layers and takes the same steps on the same data; seeds vary the order of the
data and which k a step reads. Scored at k=1 on EasyVQA's test split. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from bench.runs import trained
from bench.scores import add_new, conclude, of_run
from mmkd.evaluate.suite import evaluate

BENCH = "objectives"
STEPS = 40
# Weight chosen among 0.5, 5 and 50 on images held out of the training split. The student's layers were cut from the
# teacher's: each is matched with the one that it was.
ATTENTION = "{name: voco_attention, weight: 5, layers: [[0, 0], [1, 1], [2, 3]]}"
CASES = {
    "ce": "[{name: cross_entropy}]",
    "ce+kl": "[{name: cross_entropy}, {name: forward_kl}]",
    "ce+attention": f"[{{name: cross_entropy}}, {ATTENTION}]",
    "ce+kl+attention": f"[{{name: cross_entropy}}, {{name: forward_kl}}, {ATTENTION}]",
}
PAIRS = [("ce+kl", "ce"), ("ce+attention", "ce"), ("ce+kl+attention", "ce"), ("ce+kl+attention", "ce+kl")]
STAGE = (
    f"stages=[{{name: compress, steps: {STEPS}, trainable: [projector, language, voco], learning_rate: 5.0e-4, "
    "learning_rates: {voco: 5.0e-3}, batch_size: 12, read: [full, 8, 4, 2, 1], read_weights: [1, 2, 2, 2, 3]}]"
)


def scored(bench: str, case: str, run: Path, tokens: int | Literal["full"]) -> None:
    """Score a run on EasyVQA, and append its row, each where that is not done yet."""
    if not (run / "eval" / f"easyvqa-{tokens}.json").exists():
        evaluate(str(run / "model"), "easyvqa", [tokens], out=run / "eval")
    add_new(bench, of_run(bench, case, run))


def learned(bench: str, job: str, case: str, run: Path, seed: int, settings: list[str], ranks: int = 2) -> None:
    """Train the demo's student, score it at k=1, and append its row, each where that is not done yet."""
    trained(job, "demo/distill", run, seed, settings, ranks)
    scored(bench, case, run, 1)


def compared(out: Path, teacher: Path, seeds: list[int], cases: list[str]) -> None:
    """Train, score, and append what has no row yet."""
    for seed in seeds:
        for case in cases:
            alone = case == "ce"
            asked = "teacher=null" if alone else f"teacher.model={teacher}"
            settings = [f"student.init={teacher}", asked, STAGE, f"objectives={CASES[case]}"]
            learned(BENCH, "train" if alone else "distill", case, out / f"{case}-{seed}", seed, settings)
    conclude(BENCH, [pair for pair in PAIRS if set(pair) <= set(cases)] if len(seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.objectives", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("teacher", type=Path, help="model folder of the demo's teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    asked = parser.parse_args(sys.argv[1:])
    compared(asked.out, asked.teacher, asked.seeds, asked.cases)
