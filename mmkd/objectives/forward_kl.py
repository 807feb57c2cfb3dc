"""Forward KL on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import chunked
from mmkd.objectives.checks import number
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import TokenLoss


@register("forward_kl")
class ForwardKL(TokenLoss):
    """KL(teacher || student) on answer tokens (Hinton et al. 2015), scaled by T^2.

    Both distributions run over the ids that both sides have, padding left out on either; the tokenizer must be one.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
    """

    label = "kl"
    teacher = True

    def __init__(self, temperature: float = 1.0, chunk: int = 512):
        super().__init__(chunk)
        self.temperature = number(self.name, "temperature", temperature, above=0)

    def token_loss(self, logits: chunked.ChunkLogits) -> Tensor:
        return chunked.forward_kl(logits, self.temperature)
