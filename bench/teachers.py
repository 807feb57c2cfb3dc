"""One teacher in three shapes: live, asked once (cached), and in 4 bits. The demo's student, same steps and data.

    python -m bench.teachers runs/teachers runs/demo-full/teacher/model    # trains what is missing, appends rows
    python -m bench.teachers runs/teachers runs/demo-full/teacher/model --seeds 0 --cases live cached
    python -m bench.teachers runs/unsure runs/unsure-teacher/model --bench unsure_teachers --precision fp32 --ranks 1

Every case starts from the teacher's own layers and takes the steps of bench.objectives, whose `ce+kl` is `live` here;
seeds vary the order of the data and which k a step reads. The cache is filled once, for all seeds. The teacher is
scored with full vision and students at k=1, on EasyVQA's test split. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.objectives import STAGE, learned, scored
from bench.scores import conclude
from mmkd.launch import launch

CASES = {"live": "kind: live", "cached": "kind: cached, k: 64", "nf4": "kind: live, quantize: nf4"}
PAIRS = [("cached", "live"), ("nf4", "live")]


def settings_of(case: str, asked: argparse.Namespace) -> list[str]:
    store = f", store: {asked.out / 'store'}" if case == "cached" else ""
    teacher = f"teacher={{{CASES[case]}, model: {asked.teacher}{store}}}"
    return [f"student.init={asked.teacher}", teacher, STAGE, f"training.precision={asked.precision}"]


def compared(asked: argparse.Namespace) -> None:
    """Train, score, and append what has no row yet. Seeds outermost: each is complete early."""
    scored(asked.bench, "teacher", asked.teacher.parent, "full")
    if "cached" in asked.cases:
        launch("cache", "demo/distill", asked.out / "cache", settings_of("cached", asked), asked.ranks)
    for seed in asked.seeds:
        for case in asked.cases:
            run, settings = asked.out / f"{case}-{seed}", settings_of(case, asked)
            learned(asked.bench, "distill", case, run, seed, settings, asked.ranks)
    conclude(asked.bench, [pair for pair in PAIRS if set(pair) <= set(asked.cases)] if len(asked.seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.teachers", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("teacher", type=Path, help="model folder of the demo's teacher")
    parser.add_argument("--bench", default="teachers", help="name of the rows; another teacher's go under another one")
    parser.add_argument("--precision", default="auto", help="training.precision of students and of the live teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    parser.add_argument("--ranks", type=int, default=2, help="processes of each run")
    compared(parser.parse_args())
