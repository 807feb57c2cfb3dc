"""Next-token cross-entropy."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import chunked
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import TokenLoss


@register("cross_entropy")
class CrossEntropy(TokenLoss):
    """-log p(answer token) under the student, over its whole vocabulary."""

    label = "ce"

    def token_loss(self, logits: chunked.ChunkLogits) -> Tensor:
        return chunked.cross_entropy(logits)
