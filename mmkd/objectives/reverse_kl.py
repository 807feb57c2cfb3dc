"""Reverse KL on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives.checks import number
from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.divergences import kl
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import TokenLoss


@register("reverse_kl")
class ReverseKL(TokenLoss):
    """KL(student || teacher) on answer tokens (Gu et al. 2024, MiniLLM), scaled by T^2.

    Here at the data's own prefixes and exact over the vocabulary; MiniLLM samples the prefixes from the student.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
    """

    label = "reverse_kl"
    teacher = True

    def __init__(self, temperature: float = 1.0, chunk: int = 512):
        super().__init__(chunk)
        self.temperature = number(self.name, "temperature", temperature, above=0)

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        temperature = self.temperature
        return temperature**2 * kl(logits.student_log_probs(temperature), logits.teacher_log_probs(temperature))
