"""Methods compared across families: one teacher a pair, each method with the same seeds, steps and order of images.

    python -m bench.families runs/families                               # trains what is missing, appends rows
    python -m bench.families runs/families --pairs digits_cnn_vit --methods scratch kd ofa --seeds 0 1 2

A pair's teacher is of seed 0 and learns from labels alone, from all training images; a student of any seed sees a part
of them, so that labels alone leave it below its teacher. Part and steps are chosen by `scratch` on other training
images, see docs/bench.md. A killed run is gone on with. One process: CRD, DIST and RKD compare the images of a step and
would see other ones on two ranks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.rows import RESULTS, Row, append
from bench.scores import add_new, by_case, difference, mean, seed_row
from mmkd.config.load import load_run
from mmkd.vision_distill.run import train

BENCH = "families"

# The objectives of each method, as the program of OFA-KD (Hao et al. 2023) sets them: every method beside the labels'
# cross-entropy, both with weight 1, temperature 1. Of OFA-KD it is the authors' own log for Swin-T to ResNet-18 on
# CIFAR-100 (stages weigh 0.1; the program's default is 1). `ofa_paper` is the form of the paper's equation, which holds
# the label's loss, with an eps from the middle of the 1.1 to 1.4 that the paper finds best.
METHODS: dict[str, str] = {
    "scratch": "[{name: cross_entropy}]",
    "kd": "[{name: cross_entropy}, {name: kd, temperature: 1}]",
    "dkd": "[{name: cross_entropy}, {name: dkd, alpha: 1, beta: 2, temperature: 1}]",
    "dist": "[{name: cross_entropy}, {name: dist, beta: 1, gamma: 1, temperature: 1}]",
    "fitnet": "[{name: cross_entropy}, {name: fitnet}]",
    "crd": "[{name: cross_entropy}, {name: crd, dimensions: 128, temperature: 0.07}]",
    "rkd": "[{name: cross_entropy}, {name: rkd, distance: 25, angle: 50}]",
    "ofa": "[{name: cross_entropy}, {name: ofa, form: released, eps: 1, stage_weight: 0.1}]",
    "ofa_paper": "[{name: ofa, form: paper, eps: 1.2, stage_weight: 0.1}]",
    # Not from there, but to find causes: at temperature 4 a teacher that is sure of itself says more (gradients are 16
    # times smaller, which `kd` makes up for itself), and stages may weigh as much as the program's default has them.
    "kd_soft": "[{name: cross_entropy}, {name: kd, temperature: 4}]",
    "ofa_soft": "[{name: cross_entropy}, {name: ofa, form: released, eps: 1, stage_weight: 0.1, temperature: 4, "
    "weight: 16}]",
    "ofa_stages": "[{name: cross_entropy}, {name: ofa, form: released, eps: 1, stage_weight: 1}]",
}


@dataclass(frozen=True)
class Pair:
    """A teacher and a student of another family: the packaged config of each, and what is set otherwise."""

    teacher: str
    student: str
    student_settings: tuple[str, ...]
    teacher_settings: tuple[str, ...] = ()


def part(of: int) -> str:
    """Students learn from one training image of `of`."""
    return f"data.train.fold=[0, {of}]"


SMALL_VIT = "student.options={patch_size: 16}"  # 16 patches of the 64 pixels, for a quarter of the time
BATCH = "recipe.batch_size=32"
PAIRS = {
    "digits_cnn_vit": Pair("vision/digits_cnn", "vision/digits", (part(7), SMALL_VIT, "recipe.steps=400", BATCH)),
    "digits_cnn_vit_long": Pair("vision/digits_cnn", "vision/digits", (part(7), SMALL_VIT, "recipe.steps=1600", BATCH)),
    "digits_vit_cnn": Pair("vision/digits", "vision/digits_cnn", (part(7), BATCH), (SMALL_VIT, "recipe.steps=2000")),
    "digits_vit_cnn_few": Pair(
        "vision/digits", "vision/digits_cnn", (part(28), BATCH), (SMALL_VIT, "recipe.steps=2000")
    ),
    "easyvqa_lite0_vit": Pair("vision/easyvqa_lite0", "vision/easyvqa_vit", (part(14), "recipe.steps=900", BATCH)),
    # The tower of bench.halves: at 64 pixels it sees a shape as large as the cells of a scene show it.
    "easyvqa_lite0_vit_64": Pair(
        "vision/easyvqa_lite0",
        "vision/easyvqa_vit",
        (part(7), "student.image_size=64", "recipe.steps=1000", BATCH),
    ),
    "easyvqa_lite0_mixer": Pair("vision/easyvqa_lite0", "vision/easyvqa_mixer", (part(7),)),
    "easyvqa_vit_cnn": Pair(
        "vision/easyvqa_vit", "vision/easyvqa_cnn", (part(28), "recipe.steps=600", BATCH), ("recipe.steps=2000",)
    ),
}


def teacher_config(pair: str, out: Path) -> Any:
    of = PAIRS[pair]
    run = out / f"teacher-{of.teacher.rpartition('/')[2]}"
    settings = [f"run.dir={run}", "run.seed=0", "teacher=null", f"objectives={METHODS['scratch']}"]
    return load_run(of.teacher, [*settings, *of.teacher_settings])


def student_config(pair: str, method: str, seed: int, out: Path) -> Any:
    run, teacher = out / f"{pair}-{method}-{seed}", Path(teacher_config(pair, out).run.dir) / "model"
    settings = [f"run.dir={run}", f"run.seed={seed}", f"teacher={{model: {teacher}}}", f"objectives={METHODS[method]}"]
    return load_run(PAIRS[pair].student, [*settings, *PAIRS[pair].student_settings])


def scored(config: Any, name: str) -> None:
    """Train what is not trained, score it on the test images, and append its row."""
    run = Path(config.run.dir)
    if not (run / "scores.json").exists():
        train(config, resume=(run / "config.yaml").exists())
    found = json.loads((run / "scores.json").read_text())["student"]["top1"]
    add_new(BENCH, [seed_row(BENCH, name, found, run, f"python -m bench.families {run.parent}")])


def compared(out: Path, pairs: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Runs, their rows, and means and differences of what was asked for. Seeds outermost: each is complete early."""
    for pair in pairs:
        scored(teacher_config(pair, out), f"top1@teacher {pair}")
        for seed in seeds:
            for method in methods:
                scored(student_config(pair, method, seed, out), f"top1@{method} {pair}")
    append(list(concluded(pairs)))


def concluded(pairs: Sequence[str], results: Path = RESULTS) -> Iterator[Row]:
    """Means over the seeds there are, `PAIR@METHOD`, and what `ofa` gains over each other method.

    A gain is `gain_PAIR@ofa against METHOD`: a table has a line for each method and a column for each pair.
    """
    rows = by_case(BENCH, results)
    for pair in pairs:
        found = {
            case.rpartition(" ")[0]: name for name in rows if (case := name.partition("@")[2]).endswith(f" {pair}")
        }
        for method, name in found.items():
            yield mean(BENCH, f"{pair}@{method}", rows[name])
        for method in METHODS:
            shared = rows.get(found.get(method, ""), {}).keys() & rows.get(found.get("ofa", ""), {}).keys()
            if method != "ofa" and len(shared) > 1:
                for row in difference(
                    BENCH, "ofa", method, {found[name]: rows[found[name]] for name in (method, "ofa")}
                ):
                    metric = f"{row.what}_{pair}@ofa against {method}"
                    yield replace(row, metric=metric, command="python -m bench.families runs/families")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args(sys.argv[1:])
    compared(asked.out, asked.pairs, asked.methods, asked.seeds)
