"""Generalised Jensen-Shannon divergence on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import kernels
from mmkd.objectives.base import AnswerBatch, Losses, Outputs
from mmkd.objectives.checks import choice, number
from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.divergences import generalised_js
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import Divergence


@register("generalised_js")
class GeneralisedJS(Divergence):
    """JS(beta) of teacher p and student q on answer tokens (Agarwal et al. 2024, GKD), scaled by T^2:

        beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q

    Near beta = 0 it is beta times the forward KL, near beta = 1 it is 1 - beta times the reverse KL: the loss vanishes
    at both ends. Some libraries put the KL itself there, a jump; here the ends are refused, and forward_kl and
    reverse_kl are the objectives to name.

    Args:
        beta: between 0 and 1; 0.5 is the symmetric Jensen-Shannon divergence.
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
        kernel: chunked; on a GPU also liger.
    """

    label = "js"

    def __init__(self, beta: float = 0.5, temperature: float = 1.0, chunk: int = 512, kernel: str = "chunked"):
        super().__init__(temperature, chunk)
        self.beta = number(self.name, "beta", beta, above=0, below=1)
        self.kernel = choice(self.name, "kernel", kernel, ("chunked", "liger"))

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        return self.temperature**2 * generalised_js(*self.sides(logits), self.beta)

    def in_kernel(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        return kernels.divergence(self, self.beta, student, teacher, batch)
