"""Reverse KL on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import kernels
from mmkd.objectives.base import AnswerBatch, Losses, Outputs
from mmkd.objectives.checks import choice
from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.divergences import kl
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import Divergence


@register("reverse_kl")
class ReverseKL(Divergence):
    """KL(student || teacher) on answer tokens (Gu et al. 2024, MiniLLM), scaled by T^2.

    Here at the data's own prefixes and exact over the vocabulary; MiniLLM samples the prefixes from the student.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
        kernel: chunked; on a GPU also liger.
    """

    label = "reverse_kl"

    def __init__(self, temperature: float = 1.0, chunk: int = 512, kernel: str = "chunked"):
        super().__init__(temperature, chunk)
        self.kernel = choice(self.name, "kernel", kernel, ("chunked", "liger"))

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        teacher, student = self.sides(logits)
        return self.temperature**2 * kl(student, teacher)

    def in_kernel(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        return kernels.divergence(self, 1.0, student, teacher, batch)
