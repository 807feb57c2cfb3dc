"""Total variation on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.divergences import total_variation
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import Divergence


@register("total_variation")
class TotalVariation(Divergence):
    """1/2 sum |p - q| of teacher and student on answer tokens (Wen et al. 2023, f-DISTILL, token by token).

    Scaled by T, not T^2: softened logits move it in proportion to 1/T, the KL family in proportion to 1/T^2.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
    """

    label = "tv"

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        return self.temperature * total_variation(*self.sides(logits))
