"""A teacher that is not sure of itself in four shapes: in fp32, in 4 bits, in bf16, and asked once (cached). On scenes.

    python -m bench.scene_teachers runs/scene-teachers --start runs/scenes/compress/model \\
        --teacher runs/scenes/teacher/model

All students start from one that reads scenes and cannot answer yet, and learn in fp32, by cross-entropy and forward KL,
from the same rows in the same order; only their teacher's weights differ. Seeds vary the order of the data and which k
a step reads. Scored at k=1 on easyvqa_scenes. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.runs import METRICS, scored, trained
from bench.scores import add_new, conclude, of_run
from mmkd.launch import launch

BENCH = "scene_teachers"
DATA = "data.mixture=[{source: scenes, split: train, count: 2400, grid: 2}]"  # what 200 steps of 12 rows read, once
FP32, AUTO = "training.precision=fp32", "training.precision=auto"
CASES = {
    "fp32": ("kind: live", FP32),
    "nf4": ("kind: live, quantize: nf4", FP32),
    "cached": ("kind: cached, k: 64", FP32),
    "bf16": ("kind: live", AUTO),  # the student, too
}
PAIRS = [("nf4", "fp32"), ("cached", "fp32"), ("bf16", "fp32")]


def settings_of(case: str, asked: argparse.Namespace) -> list[str]:
    shape, precision = CASES[case]
    store = f", store: {asked.out / 'store'}" if case == "cached" else ""
    return [f"student.init={asked.start}", f"teacher={{{shape}, model: {asked.teacher}{store}}}", DATA, precision]


def compared(asked: argparse.Namespace) -> None:
    """Train, score, and append what has no row yet. Seeds outermost: each is complete early."""
    if "cached" in asked.cases:
        launch("cache", "scenes/distill", asked.out / "cache", settings_of("cached", asked), asked.ranks)
    for seed in asked.seeds:
        for case in asked.cases:
            run, settings = asked.out / f"{case}-{seed}", settings_of(case, asked)
            trained("distill", "scenes/distill", run, seed, settings, asked.ranks)
            scored(run, [1])
            add_new(BENCH, [row for metric in METRICS for row in of_run(BENCH, case, run, metric)])
    conclude(BENCH, [pair for pair in PAIRS if set(pair) <= set(asked.cases)] if len(asked.seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=f"python -m bench.{BENCH}", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--start", required=True, help="model folder that every student starts from")
    parser.add_argument("--teacher", required=True, help="model folder of the teacher of scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    parser.add_argument("--ranks", type=int, default=2, help="processes of each run")
    compared(parser.parse_args())
