"""One teacher in three shapes: live, asked once (cached), and in 4 bits. The demo's student, same steps and data.

    python -m bench.teachers runs/teachers runs/demo-full/teacher/model    # trains what is missing, appends rows
    python -m bench.teachers runs/teachers runs/demo-full/teacher/model --seeds 0 --cases live cached

Every case starts from the teacher's own layers and takes the steps of bench.objectives, whose `ce+kl` is `live` here;
seeds vary the order of the data and which k a step reads. The cache is filled once, for all seeds. Scored at k=1 on
EasyVQA's test split. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.objectives import STAGE, learned
from bench.scores import conclude
from mmkd.launch import launch

BENCH = "teachers"
CASES = {"live": "kind: live", "cached": "kind: cached, k: 64", "nf4": "kind: live, quantize: nf4"}
PAIRS = [("cached", "live"), ("nf4", "live")]


def settings_of(case: str, teacher: Path, out: Path) -> list[str]:
    store = f", store: {out / 'store'}" if case == "cached" else ""
    return [f"student.init={teacher}", f"teacher={{{CASES[case]}, model: {teacher}{store}}}", STAGE]


def compared(out: Path, teacher: Path, seeds: list[int], cases: list[str]) -> None:
    """Train, score, and append what has no row yet."""
    if "cached" in cases:
        launch("cache", "demo/distill", out / "cache", settings_of("cached", teacher, out))
    for seed in seeds:
        for case in cases:
            learned(BENCH, "distill", case, out / f"{case}-{seed}", seed, settings_of(case, teacher, out))
    conclude(BENCH, [pair for pair in PAIRS if set(pair) <= set(cases)] if len(seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.teachers", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("teacher", type=Path, help="model folder of the demo's teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    asked = parser.parse_args(sys.argv[1:])
    compared(asked.out, asked.teacher, asked.seeds, asked.cases)
