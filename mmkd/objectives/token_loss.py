"""Objectives that compare logits token by token, and the one pass over the heads that serves them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import count as checked_count
from mmkd.objectives.checks import number
from mmkd.objectives.chunked import ChunkLogits, cross_entropy, sum_over_chunks
from mmkd.objectives.sparse import SparseTargets


class TokenLoss(Objective):
    """A function of both sides' logits at each answer token. Any number of them costs one head pass of each side.

    Attributes:
        label: its name in the report.
        chunk: most answer tokens that pass the heads at once; the smallest of the objectives in use counts.
        kernel: chunked, which takes part in that pass, or what else computes it (`mmkd.objectives.kernels`).
    """

    label: str
    kernel: str = "chunked"

    def __init__(self, chunk: int = 512):
        super().__init__()
        self.chunk = checked_count(self.name, "chunk", chunk)

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        """Loss of each token of the chunk, [n], fp32."""
        raise NotImplementedError

    def summed(self, total: Tensor, tokens: int) -> dict[str, Ratio]:
        """Told once for each pass what the losses of so many tokens sum to (detached); returns what to report besides.

        `token_loss` cannot keep count itself: backward calls it again for most chunks.
        """
        return {}

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        return Needs(teacher=self.teacher)

    def in_kernel(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        """What `kernel` makes of it, if that is not chunked."""
        raise NotImplementedError

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if self.kernel != "chunked":
            return self.in_kernel(student, teacher, batch)
        return token_losses([(self, 1.0)], student, teacher, batch)


class Divergence(TokenLoss):
    """A token loss between the distributions of teacher and student, both softened by a temperature.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
    """

    teacher = True

    def __init__(self, temperature: float = 1.0, chunk: int = 512):
        super().__init__(chunk)
        self.temperature = number(self.name, "temperature", temperature, above=0)

    def sides(self, logits: ChunkLogits) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher and student at T, [n, shared] each."""
        return logits.teacher_log_probs(self.temperature), logits.student_log_probs(self.temperature)


def token_losses(
    terms: Sequence[tuple[TokenLoss, float]],
    student: Outputs,
    teacher: Outputs | SparseTargets | None,
    batch: AnswerBatch,
) -> Losses:
    """The weighted sum of token losses, from one pass over the student's head and at most one over the teacher's.

    Args:
        terms: objectives and their weights.
        teacher: its outputs, or what a cache kept of them, for objectives that take that (`sparse_teacher`).

    Reports "ce" and "accuracy" (top-1 against the targets); with a teacher in use also "teacher_nll",
    "teacher_accuracy" and "agree" (both sides' top-1 is the same token); and each objective under its label.
    """
    reads_teacher = any(objective.teacher for objective, _ in terms)
    if reads_teacher and teacher is None:
        raise ValueError(f"{', '.join(o.name for o, _ in terms if o.teacher)}: the teacher's outputs are missing.")
    other = teacher if reads_teacher else None
    dense = other if isinstance(other, Outputs) else None
    known = [side.vocabulary for side in (student, other) if side is not None and side.vocabulary is not None]

    def function(logits: ChunkLogits) -> tuple[Tensor, Tensor]:
        losses = [objective.token_loss(logits) for objective, _ in terms]
        plain = torch.stack([loss.detach().sum() for loss in losses])
        if logits.weights is not None:
            losses = [loss * logits.weights for loss in losses]
        total = torch.stack([weight * loss.sum() for loss, (_, weight) in zip(losses, terms, strict=True)]).sum()
        numbers = report_numbers(logits)
        return total[None], torch.cat([numbers, plain.to(numbers.dtype)])

    total, numbers = sum_over_chunks(
        function,
        batch.answer_ids,
        student.answer_hidden,
        student.head,
        dense.answer_hidden if dense else None,
        dense.head if dense else None,
        sparse_teacher=other if isinstance(other, SparseTargets) else None,
        chunk=smallest_chunk([objective for objective, _ in terms]),
        calls=batch.head_calls,
        vocabulary=min(known, default=None),
        weights=batch.weights,
        head_weight=student.head_weight,
    )
    numbers, plain = numbers.tensor_split([len(numbers) - len(terms)])
    return Losses(total[0] / batch.normalizer, _report(terms, plain, numbers, len(batch.answer_ids)))


def smallest_chunk(objectives: Sequence[TokenLoss]) -> int:
    """Answer tokens that pass the heads at once when these objectives run together."""
    return min(objective.chunk for objective in objectives)


@torch.no_grad()
def report_numbers(logits: ChunkLogits) -> Tensor:
    """Sums over the chunk: ce, accuracy, and with a teacher its NLL and accuracy, the tokens it knows, agreement."""
    targets, best = logits.targets, logits.student.argmax(-1)  # [n]
    numbers = [cross_entropy(logits).sum(), (best == targets).sum()]
    if isinstance(logits.teacher, SparseTargets):
        cached = logits.teacher
        known = ~cached.answers.isnan()
        nll, teacher_best = -cached.answers.nan_to_num(), cached.best
        numbers += [nll.sum(), (teacher_best == targets).sum(), known.sum(), (teacher_best == best).sum()]
    elif logits.teacher is not None:
        known = targets < logits.shared  # a token that only the student has says nothing of the teacher
        log_probs = logits.teacher_log_probs()
        nll = -log_probs.gather(1, targets.clamp(max=logits.shared - 1)[:, None])[:, 0]
        teacher_best = log_probs.argmax(-1)
        numbers += [(nll * known).sum(), (teacher_best == targets).sum(), known.sum(), (teacher_best == best).sum()]
    return torch.stack([number.to(numbers[0].dtype) for number in numbers])


def _report(terms: Sequence[tuple[TokenLoss, float]], sums: Tensor, numbers: Tensor, tokens: int) -> dict[str, Ratio]:
    count = numbers.new_tensor(tokens)
    report = {"ce": Ratio(numbers[0], count), "accuracy": Ratio(numbers[1], count)}
    if len(numbers) > 2:
        nll, correct, known, agree = numbers[2:]
        report |= {
            "teacher_nll": Ratio(nll, known),
            "teacher_accuracy": Ratio(correct, count),
            "agree": Ratio(agree, count),
        }
    for (objective, _), total in zip(terms, sums, strict=True):
        label, copies = objective.label, 2
        while label in report and label != "ce":
            label, copies = f"{objective.label}_{copies}", copies + 1
        report[label] = Ratio(total, count)
        report |= {f"{label}_{name}": ratio for name, ratio in objective.summed(total, tokens).items()}
    return report
