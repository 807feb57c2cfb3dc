"""Skewed KL on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives.checks import choice, number
from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.divergences import skewed_kl
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import Divergence


@register("skewed_kl")
class SkewedKL(Divergence):
    """KL against a mixture of both sides on answer tokens (Ko et al. 2024, DistiLLM), scaled by T^2:

        forward:  KL(p || skew p + (1 - skew) q)        p the teacher, q the student
        reverse:  KL(q || skew q + (1 - skew) p)

    The mixture is never far from the first side, so that loss and gradient stay bounded where the second gives a token
    next to nothing. The released code leaves the entropy of p out of the forward form: the same gradient, but its value
    is not 0 where both sides agree.

    Args:
        direction: forward or reverse.
        skew: between 0 and 1; as it goes to 0 the loss becomes forward_kl or reverse_kl.
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
    """

    label = "skewed_kl"

    def __init__(self, direction: str = "forward", skew: float = 0.1, temperature: float = 1.0, chunk: int = 512):
        super().__init__(temperature, chunk)
        self.direction = choice(self.name, "direction", direction, ("forward", "reverse"))
        self.skew = number(self.name, "skew", skew, above=0, below=1)

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        sides = self.sides(logits)
        first, second = sides if self.direction == "forward" else sides[::-1]
        return self.temperature**2 * skewed_kl(first, second, self.skew)
