"""Preference pairs: of two answers to one question, the better one is made the likelier."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmkd.errors import DataError
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Pairs, Ratio
from mmkd.objectives.checks import count, number
from mmkd.objectives.chunked import answer_log_probs
from mmkd.objectives.registry import register
from mmkd.objectives.sparse import SparseTargets


class PairLoss(Objective):
    """-log sigmoid(margin), the mean over the pairs of the optimiser step. A subclass says what the margin is.

    Its pass over the head is its own, so beside token losses the head runs twice.

    Args:
        beta: how much a difference of log-probabilities counts.
        chunk: most answer tokens that pass a head at once.
    """

    reads_pairs = True

    def __init__(self, beta: float = 0.1, chunk: int = 512):
        super().__init__()
        self.beta = number(self.name, "beta", beta, above=0)
        self.chunk = count(self.name, "chunk", chunk)

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        return Needs(teacher=self.teacher)

    def rewards(self, log_probs: Tensor, teacher: Outputs | SparseTargets | None, batch: AnswerBatch) -> Tensor:
        """[2, P]: what the chosen and the rejected answer of each pair are worth, given the student's [N] log-probs."""
        raise NotImplementedError

    def margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """[P]"""
        return chosen - rejected

    def forward(self, student: Outputs, teacher: Outputs | SparseTargets | None, batch: AnswerBatch) -> Losses:
        """Raises ValueError for a batch without pairs."""
        pairs = _pairs(batch)
        log_probs = self.log_probs(student, batch)
        chosen, rejected = self.rewards(log_probs, teacher, batch)
        margin = self.margin(chosen, rejected)
        loss = softplus(-margin).sum()
        total = loss.new_tensor(pairs.count)
        report = {
            self.name: Ratio(loss.detach(), total),
            f"{self.name}_accuracy": Ratio((margin > 0).sum().detach(), total),
            f"{self.name}_chosen": Ratio(chosen.sum().detach(), total),
            f"{self.name}_rejected": Ratio(rejected.sum().detach(), total),
        }
        return Losses(loss / pairs.normalizer, report)

    def log_probs(self, side: Outputs, batch: AnswerBatch) -> Tensor:
        """[N] log-probability of each answer token."""
        return answer_log_probs(side.answer_hidden, side.head, batch.answer_ids, self.chunk, batch.head_calls)


@register("dpo")
class DPO(PairLoss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): the margin is

        beta (log pi(chosen) / ref(chosen) - log pi(rejected) / ref(rejected))

    with the summed log-probabilities of an answer's tokens under the student, pi, and under the teacher, which is the
    reference: the model that training starts from. It reads with full vision, however the student reads. Of a cached
    teacher its answers' log-probabilities are enough.

    Reports "dpo", "dpo_accuracy" (margin > 0), and "dpo_chosen", "dpo_rejected": beta log pi / ref of each answer.

    Args:
        beta: how far from the reference it costs to go.
        chunk: most answer tokens that pass a head at once.
    """

    teacher = True
    sparse_teacher = True

    def rewards(self, log_probs: Tensor, teacher: Outputs | SparseTargets | None, batch: AnswerBatch) -> Tensor:
        if teacher is None:
            raise ValueError("dpo: the teacher's outputs are missing.")
        pairs = _pairs(batch)
        if isinstance(teacher, SparseTargets):
            reference = teacher.answers
            if (unknown := reference.isnan() & (pairs.preference != 0)).any():
                raise DataError(
                    f"dpo: the teacher's cache holds no log-probability of {int(unknown.sum())} answer tokens of this "
                    f"batch (ids {batch.answer_ids[unknown][:5].tolist()} of the student, beyond the "
                    f"{teacher.vocabulary} that both sides share), and a reference needs all. Take a live or "
                    "shared teacher."
                )
        else:
            with torch.no_grad():
                reference = self.log_probs(teacher, batch)
        return self.beta * _summed(log_probs - reference, pairs)


@register("simpo")
class SimPO(PairLoss):
    """Preference optimisation without a reference (Meng et al. 2024, arXiv 2405.14734, eq. 6): the margin is

        beta (mean log pi(chosen) - mean log pi(rejected)) - gamma

    with means over an answer's tokens. Reports as `dpo` does; "simpo_accuracy" is of the margin with gamma.

    Args:
        beta: how much a difference of mean log-probabilities counts.
        gamma: by how much the chosen answer is to lead.
        chunk: most answer tokens that pass a head at once.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, chunk: int = 512):
        super().__init__(beta, chunk)
        self.gamma = number(self.name, "gamma", gamma, least=0)

    def rewards(self, log_probs: Tensor, teacher: Outputs | SparseTargets | None, batch: AnswerBatch) -> Tensor:
        pairs = _pairs(batch)
        return self.beta * _summed(log_probs, pairs) / _summed(torch.ones_like(log_probs), pairs)

    def margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return super().margin(chosen, rejected) - self.gamma


def without_rejected(
    student: Outputs, teacher: Outputs | SparseTargets | None, batch: AnswerBatch
) -> tuple[Outputs, Outputs | SparseTargets | None, AnswerBatch]:
    """What token losses read of a batch of pairs: nothing of rejected answers, which nobody is to learn."""
    if batch.pairs is None:
        return student, teacher, batch
    keep = batch.pairs.preference >= 0
    if isinstance(teacher, SparseTargets):
        teacher = teacher.pick(keep)
    elif teacher is not None:
        teacher = replace(teacher, answer_hidden=teacher.answer_hidden[keep])
    student = replace(student, answer_hidden=student.answer_hidden[keep])
    at = {name: getattr(batch, name)[keep] for name in ("answer_ids", "rows", "positions")}
    return student, teacher, replace(batch, **at, pairs=None)


def _pairs(batch: AnswerBatch) -> Pairs:
    if batch.pairs is None:
        raise ValueError("this batch holds no preference pairs.")
    return batch.pairs


def _summed(values: Tensor, pairs: Pairs) -> Tensor:
    """[N] -> [2, P]: sums over the tokens of each pair's chosen and rejected answer."""
    number, rejected = pairs.preference.abs(), (pairs.preference < 0).long()
    # Column 0 takes the tokens of no pair: earlier answers of a chat.
    sums = values.new_zeros(2 * (pairs.count + 1)).index_add(0, rejected * (pairs.count + 1) + number, values)
    return sums.view(2, pairs.count + 1)[:, 1:]
