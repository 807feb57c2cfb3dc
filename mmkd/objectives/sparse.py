"""What a teacher that was asked beforehand knows of each answer token: some tokens of its distribution, not all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

NOWHERE = -1e30  # log of no mass: finite, so that nothing times it is nothing and its gradient is zero


@dataclass
class SparseTargets:
    """The teacher's next-token distribution p at N answer tokens, on m token ids each.

    p is softened by the temperature at which it was kept, and runs over the ids below `vocabulary`. The ids of a row
    differ from each other, but for what fills a row up and weighs nothing: of a sample id 0, of the top k the row's
    first id again. A row all of which weighs nothing, tail included, is one of which nothing is known.

    Attributes:
        ids: [N, m] long; log_probs: [N, m] log p of them, fp32.
        weights: [N, m] fp32. Of a sample: what makes sum(weights * f(ids)) an unbiased estimate of sum_v p_v f(v). Of
            the top k: p itself.
        tail: [N] log of the mass of all other ids; None for a sample, which speaks for them too.
        answers: [N] log p of the answer token at temperature 1, nan where the teacher has no such token.
        best: [N] the teacher's likeliest token.
        vocabulary: token ids below this are known to both sides.
        hidden: [N, D] output of each decoder layer of the teacher that was kept, at the answer rows; not split.
    """

    ids: Tensor
    log_probs: Tensor
    weights: Tensor
    tail: Tensor | None
    answers: Tensor
    best: Tensor
    vocabulary: int
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def split(self, sizes: Sequence[int]) -> list[SparseTargets]:
        """Pieces of so many rows."""
        parts = (part.split(list(sizes)) if part is not None else [None] * len(sizes) for part in self._tensors())
        return [SparseTargets(*piece, self.vocabulary) for piece in zip(*parts, strict=True)]  # pyright: ignore[reportArgumentType]

    def pick(self, keep: Tensor) -> SparseTargets:
        """The rows that the mask `keep` [N] names, without their hidden states."""
        return SparseTargets(*(None if part is None else part[keep] for part in self._tensors()), self.vocabulary)  # pyright: ignore[reportArgumentType]

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.ids, self.log_probs, self.weights, self.tail, self.answers, self.best


def forward_kl(teacher: SparseTargets, student: Tensor) -> Tensor:
    """KL(teacher || student) on what is known of the teacher, [n].

    Of the top k: exact on k + 1 buckets, the k ids and all others together,

        sum_i p_i (log p_i - log q_i) + p_tail (log p_tail - log q_tail),    q_tail = sum of q over all other ids

    never more than the KL over the vocabulary, and equal to it where k is the vocabulary. Of a sample: sum_i w_i
    (log p_i - log q_i), whose mean over samples, in value and gradient, is the KL over the vocabulary (Anshumann et
    al. 2025, "Sparse Logit Sampling", arXiv 2503.16870, random sampling distillation).

    Args:
        student: [n, V] log q over the ids below the teacher's `vocabulary`, at the temperature of the teacher's.
    """
    loss = (teacher.weights * (teacher.log_probs - student.gather(1, teacher.ids))).sum(-1)
    if teacher.tail is None:
        return loss
    # Not log(1 - sum of the others), which loses all digits, and its gradient all bounds, where little is left.
    others = student.scatter(1, teacher.ids, NOWHERE).logsumexp(-1)  # [n]
    return loss + teacher.tail.exp() * (teacher.tail - others)
