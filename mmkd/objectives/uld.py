"""Universal logit distillation: a loss for two vocabularies that number tokens differently."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmkd.objectives.chunked import ChunkLogits, Head, sum_over_chunks


def sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_i |p_(i) - q_(i)| over probabilities sorted from the largest, the shorter list filled up with zeros.

    The Wasserstein distance of the two distributions where moving mass between any two tokens costs the same (Boizard
    et al. 2024, arXiv 2402.12030). 0 where both are equally sure, whatever of; at most 2.

    Args:
        student [n, V_s], teacher [n, V_t]: logits.

    Returns: [n], fp32.
    """
    width = max(student.shape[-1], teacher.shape[-1])
    ours, theirs = (_sorted_probabilities(logits, width) for logits in (student, teacher))
    return (ours - theirs).abs().sum(-1)


def chunked_uld(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    starts: tuple[Tensor, Tensor],
    vocabularies: tuple[int | None, int | None] = (None, None),
    chunk: int = 512,
    calls: int | None = None,
) -> Tensor:
    """Sum of `sorted_distance` over aligned spans, at the first token of each on either side.

    Only there have both sides read the same bytes, so that their next tokens can be compared. (The paper pairs the
    n-th tokens of both sides, which then mostly stand for different text.)

    Args:
        student_hidden [N_s, D_s], teacher_hidden [N_t, D_t]: at the positions that predict each side's answer tokens.
        starts: for S spans, indices [S] into N_s and [S] into N_t.
        vocabularies: student's and teacher's ids below these are real; None takes the whole width.
        chunk, calls: see `chunked.split_sizes`; they count spans.

    Returns: scalar, fp32, tied to `student_hidden` also where S = 0.
    """

    def function(logits: ChunkLogits) -> tuple[Tensor, Tensor]:
        teacher = logits.teacher_logits()
        distances = sorted_distance(logits.student[:, : vocabularies[0]], teacher[:, : vocabularies[1]])
        return distances.sum()[None], distances.new_zeros(0)

    return sum_over_chunks(
        function,
        torch.zeros_like(starts[0]),  # no next-token targets are read
        student_hidden[starts[0]],
        student_head,
        teacher_hidden[starts[1]],
        teacher_head,
        chunk=chunk,
        calls=calls,
    )[0][0]


def _sorted_probabilities(logits: Tensor, width: int) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    probabilities = torch.softmax(logits, -1, dtype=dtype).sort(-1, descending=True).values
    return functional.pad(probabilities, (0, width - logits.shape[-1]))
