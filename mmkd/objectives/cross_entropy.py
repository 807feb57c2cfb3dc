"""Next-token cross-entropy."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import chunked, kernels
from mmkd.objectives.base import AnswerBatch, Losses, Outputs
from mmkd.objectives.checks import choice
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import TokenLoss


@register("cross_entropy")
class CrossEntropy(TokenLoss):
    """-log p(answer token) under the student, over its whole vocabulary.

    Args:
        chunk: most answer tokens that pass the head at once.
        kernel: chunked; on a GPU also liger or cut_cross_entropy.
    """

    label = "ce"

    def __init__(self, chunk: int = 512, kernel: str = "chunked"):
        super().__init__(chunk)
        self.kernel = choice(self.name, "kernel", kernel, ("chunked", "liger", "cut_cross_entropy"))

    def token_loss(self, logits: chunked.ChunkLogits) -> Tensor:
        return chunked.cross_entropy(logits)

    def in_kernel(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        return kernels.cross_entropy(self, student, batch)
