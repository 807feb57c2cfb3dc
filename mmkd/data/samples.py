"""Records made ready, and how they are laid out in rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmkd.data.teacher_rows import Rows


@dataclass
class Sample:
    """A record made ready, not yet batched.

    Attributes:
        ids: text tokens without the sink; answer: 1 where the assistant speaks.
        images: [tiles, 3, H, W] pixels, or [tiles, n, D] tower features; None without images.
        tiles: of each image.
        length: in a full-vision row: the sink, one more for each image, image tokens, text; of both sides, the longer.
        dropped: question-answer pairs left out at the end to fit `max_length`.
        teacher: the record as a teacher with tokens of its own reads it; its images are None where both sides share
            them. spans: see `TeacherSide.spans`.
        teacher_rows: what a cached teacher knows of its answer tokens.
        weights: what the loss of each token counts, where answers and rationales are weighed; answers: how many it has.
        preference: of a preference pair, 1 at the tokens of the chosen answer, -1 at those of the rejected one.
        twin: the row's rationales, or the rejected answer of its pair, as a sample of their own.
    """

    id: str
    ids: list[int]
    answer: list[int]
    images: Tensor | None
    tiles: list[int]
    length: int
    dropped: int = 0
    teacher: Sample | None = None
    spans: list[tuple[int, int, bool]] = field(default_factory=list)
    teacher_rows: Rows | None = None
    weights: list[float] = field(default_factory=list)
    answers: int = 0
    preference: list[int] = field(default_factory=list)
    twin: Sample | None = None


def texts_of(packed: list[list[Sample]], pad: int) -> dict[str, Tensor]:
    """The text tensors of a batch, [R, T] each, padded on the right."""
    shape = (len(packed), max(sum(len(sample.ids) for sample in row) for row in packed))
    batch = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
        "position_ids": torch.zeros(shape, dtype=torch.long),
        "segment_ids": torch.zeros(shape, dtype=torch.long),
    }
    for row, members in enumerate(packed):
        start = 0
        for segment, sample in enumerate(members):
            ids, answer = torch.tensor(sample.ids), torch.tensor(sample.answer, dtype=torch.bool)
            span = slice(start, start + len(ids))
            batch["input_ids"][row, span] = ids
            batch["attention_mask"][row, span] = 1
            batch["labels"][row, span] = torch.where(answer, ids, -100)
            batch["position_ids"][row, span] = torch.arange(len(ids))
            batch["segment_ids"][row, span] = segment
            start = span.stop
        # Padding belongs to the last sample, so that no row has a segment of its own for it.
        batch["segment_ids"][row, start:] = len(members) - 1
    return batch


def weights_of(packed: list[list[Sample]], length: int) -> dict[str, Tensor]:
    """`loss_weights` [R, length], laid out as `texts_of` lays out tokens; `loss_answers` [], answers of the batch."""
    weights = _laid_out([[sample.weights for sample in row] for row in packed], torch.zeros(len(packed), length))
    return {"loss_weights": weights, "loss_answers": torch.tensor(sum(s.answers for row in packed for s in row))}


def preference_of(packed: list[list[Sample]], pairs: Sequence[Sample], length: int) -> Tensor:
    """[R, length], laid out as `texts_of` lays out tokens: n at the chosen answer of the n-th of `pairs`, counted from
    1, -n at the rejected one, which is its twin's; 0 elsewhere."""
    number = {id(one): place for place, pair in enumerate(pairs, 1) for one in (pair, pair.twin)}
    marks = [[[number[id(sample)] * mark for mark in sample.preference] for sample in row] for row in packed]
    return _laid_out(marks, torch.zeros(len(packed), length, dtype=torch.long))


def _laid_out(rows: Sequence[Sequence[Sequence[float]]], into: Tensor) -> Tensor:
    """Values of the tokens of each sample of each row, padded on the right."""
    for row, members in enumerate(rows):
        together = [value for sample in members for value in sample]
        into[row, : len(together)] = torch.tensor(together, dtype=into.dtype)
    return into


def images_of(packed: list[list[Sample]], name: str, blank: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The image tensors of a batch under `name`, with the row and segment of each; `blank()` where it has none."""
    found = [
        (row, segment, count)
        for row, members in enumerate(packed)
        for segment, sample in enumerate(members)
        for count in sample.tiles
    ]
    tensors = [sample.images for members in packed for sample in members if sample.images is not None]
    if not found:
        found, tensors = [(-1, 0, 1)], [blank()]
    rows, segments, tiles = zip(*found)
    return {
        name: torch.cat(tensors),
        "image_tiles": torch.tensor(tiles),
        "image_rows": torch.tensor(rows),
        "image_segments": torch.tensor(segments),
    }


def spans_of(packed: list[list[Sample]], *labels: Tensor) -> Tensor:
    """[S, 3]: the number, among the answer tokens of each side's `labels` [R, T], of the first token of each span, and
    1 where the span is one and the same token on both sides."""
    numbers = [_answer_numbers(side) for side in labels]
    found = []
    for row, members in enumerate(packed):
        starts = [0, 0]
        for sample in members:
            for ours, theirs, matched in sample.spans:
                at = numbers[0][row, starts[0] + ours], numbers[1][row, starts[1] + theirs]
                found.append((*map(int, at), int(matched)))
            starts = [starts[0] + len(sample.ids), starts[1] + len(sample.teacher.ids if sample.teacher else ())]
    spans = torch.tensor(found, dtype=torch.long).reshape(-1, 3)
    return spans[(spans[:, :2] >= 0).all(1)]


def _answer_numbers(labels: Tensor) -> Tensor:
    """[R, T], which of the batch's answer tokens a token is, -1 for others; nothing predicts the first of a row."""
    answers = labels != -100
    answers[:, 0] = False
    return torch.where(answers, answers.flatten().cumsum(0).reshape(labels.shape) - 1, -1)
