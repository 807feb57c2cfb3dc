"""Whether a teacher's logits point where labels point: gradients of a student of bench.halves on rows it has not seen.

    python -m bench.label_gradients runs/halves --seed 0    # with the runs of `bench.halves ... --seeds 0`

Distillation helps where a teacher says more of the true probabilities of an answer than one drawn label does (Menon et
al., ICML 2021). The labels of scenes are no draw: given the picture, the answer is certain, so a label should be the
best target that there is, unless some are wrong. For each batch the gradient of the student's projector and decoder is
taken from the labels, from the teacher's logits, and from labels some of which are wrong: how near is it to the mean
gradient of the right labels of all other batches?
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.rows import Row, append, config_hash, surroundings
from mmkd.compose import compose, parts
from mmkd.config.load import load_run
from mmkd.config.schema import Config, ObjectiveSection, StudentSection
from mmkd.data.collate import Collator
from mmkd.data.records import Record, Turn
from mmkd.data.scenes import records, scenes
from mmkd.objectives import build
from mmkd.teachers.live import build_teacher
from mmkd.teachers.tokenizers import teacher_side, vocabulary_size
from mmkd.train.task import DistillTask

BENCH = "label_gradients"
STREAM, SIZE = 77, 8  # seed of scenes that no run has seen; rows of a batch
WRONG = 0.3
CPU = torch.device("cpu")


def questions(count: int) -> list[Record]:
    return records("train", count, STREAM, grid=2)


def spoiled(rows: list[Record]) -> list[Record]:
    """The rows with a share `WRONG` of answers replaced by another one that questions of that type have."""
    asked = [question for scene in scenes("train", len(rows), STREAM, grid=2) for question in scene.questions]
    type_of = {question.text: question.type for question in asked}
    said: dict[str, set[str]] = defaultdict(set)
    for question in asked:
        said[question.type].add(question.answer)
    chance = random.Random(0)

    def turns(given: list[Turn]) -> Iterator[Turn]:
        for before, turn in zip([None, *given], given, strict=False):
            if before is not None and turn.role == "assistant" and chance.random() < WRONG:
                turn = replace(turn, text=chance.choice(sorted(said[type_of[before.text]] - {turn.text})))
            yield turn

    return [replace(row, turns=list(turns(row.turns))) for row in rows]


class Gradients:
    """Gradients of one student, by objective."""

    def __init__(self, student: Path, run: Config, objective: str):
        composed = compose(StudentSection(init=str(student)), torch.float32)
        made = build(ObjectiveSection(name=objective))
        side = teacher_side(run.teacher, composed.processor, [made])
        teacher = build_teacher(run.teacher, torch.float32, "sdpa", CPU) if made.asks_teacher else None
        self.task = DistillTask(composed.model, [(made, 1.0)], teacher, vocabulary_size(composed.processor.tokenizer))
        self.collator = Collator(composed.processor, run.data.max_length, True, teacher=side)
        learning = {"projector", "language"}
        for name, parameters in parts(composed.model).items():
            for parameter in parameters:
                parameter.requires_grad_(name in learning)
        self.learned = [parameter for parameter in self.task.parameters() if parameter.requires_grad]

    def of(self, rows: list[Record]) -> Tensor:
        """[P], of a mean over the answer tokens of the rows."""
        batch: dict[str, Any] = self.collator(rows) | {"reads": [None]}
        batch["normalizer"] = float((batch["labels"][:, 1:] != -100).sum())
        self.task.train()
        self.task.zero_grad()
        self.task(batch).backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.learned if parameter.grad is not None])


def cosines(out: Path, seed: int, count: int) -> dict[str, list[float]]:
    """By target, each batch's cosine with the mean gradient of the right labels of all others."""
    run, student = load_run(out / f"kd-{seed}"), out / f"sft-{seed}" / "model"
    rows = questions(count * SIZE)
    batches = [slice(start, start + SIZE) for start in range(0, len(rows), SIZE)]
    from_labels = Gradients(student, run, "cross_entropy")
    right = [from_labels.of(rows[at]) for at in tqdm(batches, "labels")]
    total = torch.zeros_like(right[0])
    for gradient in right:
        total += gradient

    def towards(number: int, gradient: Tensor) -> float:
        return float(torch.cosine_similarity(gradient, total - right[number], dim=0))

    found = {"labels": [towards(i, gradient) for i, gradient in enumerate(right)]}
    wrong = spoiled(rows)
    name = f"labels, {WRONG:.0%} wrong"
    found[name] = [towards(i, from_labels.of(wrong[at])) for i, at in enumerate(tqdm(batches, name))]
    from_teacher = Gradients(student, run, "forward_kl")
    found["teacher"] = [towards(i, from_teacher.of(rows[at])) for i, at in enumerate(tqdm(batches, "teacher"))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.label_gradients", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of bench.halves")
    parser.add_argument("--seed", type=int, default=0, help="of its runs")
    parser.add_argument("--batches", type=int, default=24, help=f"of {SIZE} scenes")
    asked = parser.parse_args()
    found = cosines(asked.out, asked.seed, asked.batches)
    command = f"python -m bench.label_gradients {asked.out} --seed {asked.seed} --batches {asked.batches}"
    digest, around = config_hash(load_run(asked.out / f"kd-{asked.seed}")), surroundings()

    def row(metric: str, values: list[float]) -> Row:
        spread = statistics.stdev(values)
        return Row(
            BENCH, metric, statistics.mean(values), "cosine", (asked.seed,), spread, None, command, digest, **around
        )

    made = [row(f"nearness@{target}", values) for target, values in found.items()]
    for target in set(found) - {"labels"}:
        made.append(row(f"below_labels@{target}", [a - b for a, b in zip(found["labels"], found[target], strict=True)]))
    append(made)
    for one in made:
        print(f"{one.metric}: {one.value:.4f} +- {one.spread:.4f}")


if __name__ == "__main__":
    main()
