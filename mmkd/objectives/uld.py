"""Universal logit distillation: for two vocabularies that number tokens differently."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio, Spans
from mmkd.objectives.checks import choice, count
from mmkd.objectives.chunked import ChunkLogits, Head, sum_over_chunks
from mmkd.objectives.divergences import kl
from mmkd.objectives.registry import register


@register("uld")
class ULD(Objective):
    """For a teacher of another tokenizer, or of another chat template: each side reads its own tokens, and they are
    compared where both have read the same bytes of an answer, at the first token of each span of `byte_spans.align`.

        matched span:  KL(p || q) over the tokens that both vocabularies have, p and q renormalised over them
        other span:    sum_i |p_(i) - q_(i)|, probabilities sorted (Boizard et al. 2024, arXiv 2402.12030)

    A span is matched where both sides cut it as one and the same token. Summed over spans and divided by the student's
    answer tokens, as `cross_entropy` is. (The paper sorts at all positions and pairs the n-th tokens of both sides,
    which then mostly stand for different text.) With one tokenizer and one template this is `forward_kl` at T = 1.

    Reports "uld", the mean over spans, "uld_kl" and "uld_sorted", over the spans of each kind, and "uld_spans", spans
    for each of the student's answer tokens.

    Args:
        matched: "forward_kl" as above; "sorted" treats matched spans as the others.
        chunk: most spans that pass the heads at once.
    """

    own_tokens = True

    def __init__(self, matched: str = "forward_kl", chunk: int = 512):
        super().__init__()
        self.matched = choice(self.name, "matched", matched, ("forward_kl", "sorted"))
        self.chunk = count(self.name, "chunk", chunk)

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        return Needs(teacher=True, own_tokens=True)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if teacher is None or batch.spans is None:
            raise ValueError("uld: the teacher's outputs on its own tokens, or the spans of the answers, are missing.")
        spans = batch.spans
        if self.matched == "sorted":
            spans = Spans(spans.student, spans.teacher, torch.zeros_like(spans.matched), spans.shared)
        sums, found = chunked_uld(
            student.answer_hidden,
            student.head,
            teacher.answer_hidden,
            teacher.head,
            spans,
            (student.vocabulary, teacher.vocabulary),
            self.chunk,
            batch.head_calls,
            batch.weights,
        )
        matched = spans.matched.sum()
        total = torch.tensor(len(spans.matched), device=found.device)
        report = {
            "uld": Ratio(found.sum(), total),
            "uld_kl": Ratio(found[0], matched),
            "uld_sorted": Ratio(found[1], total - matched),
            "uld_spans": Ratio(total, torch.tensor(len(batch.answer_ids), device=found.device)),
        }
        return Losses(sums.sum() / batch.normalizer, report)


def chunked_uld(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    spans: Spans,
    vocabularies: tuple[int | None, int | None] = (None, None),
    chunk: int = 512,
    calls: int | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over spans: of the KL at matched ones, and of `sorted_distance` at the others.

    Args:
        student_hidden [N_s, D_s], teacher_hidden [N_t, D_t]: at the positions that predict each side's answer tokens.
        vocabularies: student's and teacher's ids below these are real; None takes the whole width.
        chunk, calls: see `chunked.split_sizes`; they count spans.
        weights: [N_s] of the student's answer tokens; a span counts as its first token does.

    Returns: weighed, [2], fp32, tied to `student_hidden` also where there are no spans; and as they are, without
        gradient.
    """

    def function(logits: ChunkLogits) -> tuple[Tensor, Tensor]:
        student, teacher = logits.student[:, : vocabularies[0]], logits.teacher_logits()[:, : vocabularies[1]]
        matched = logits.targets.nonzero()[:, 0]
        others = (logits.targets == 0).nonzero()[:, 0]
        ours, theirs = (
            _log_probs(side[matched].index_select(1, ids))
            for side, ids in zip((student, teacher), spans.shared, strict=True)
        )
        parts = [(matched, kl(theirs, ours)), (others, sorted_distance(student[others], teacher[others]))]
        plain = torch.stack([losses.sum() for _, losses in parts])
        if logits.weights is None:
            return plain, plain
        shares = logits.weights
        return torch.stack([(losses * shares[which]).sum() for which, losses in parts]), plain

    return sum_over_chunks(
        function,
        spans.matched.long(),  # in the place of targets, which no part of this loss reads
        student_hidden[spans.student],
        student_head,
        teacher_hidden[spans.teacher],
        teacher_head,
        chunk=chunk,
        calls=calls,
        weights=None if weights is None else weights[spans.student],
    )


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


def _log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _sorted_probabilities(logits: Tensor, width: int) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    probabilities = torch.softmax(logits, -1, dtype=dtype).sort(-1, descending=True).values
    return functional.pad(probabilities, (0, width - logits.shape[-1]))
