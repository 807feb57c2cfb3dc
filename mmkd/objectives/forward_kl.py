"""Forward KL on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd.objectives import chunked, kernels
from mmkd.objectives.base import AnswerBatch, Losses, Outputs
from mmkd.objectives.checks import choice
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import Divergence


@register("forward_kl")
class ForwardKL(Divergence):
    """KL(teacher || student) on answer tokens (Hinton et al. 2015), scaled by T^2.

    Both distributions run over the ids that both sides have, padding left out on either; the tokenizer must be one.
    A cached teacher gives the KL on its top k ids and one bucket for all others, or an unbiased estimate from sampled
    ids; see `sparse`.

    Args:
        temperature: T; softens both sides.
        chunk: most answer tokens that pass the heads at once.
        kernel: chunked; on a GPU also liger.
    """

    label = "kl"
    sparse_teacher = True

    def __init__(self, temperature: float = 1.0, chunk: int = 512, kernel: str = "chunked"):
        super().__init__(temperature, chunk)
        self.kernel = choice(self.name, "kernel", kernel, ("chunked", "liger"))

    def token_loss(self, logits: chunked.ChunkLogits) -> Tensor:
        return chunked.forward_kl(logits, self.temperature)

    def in_kernel(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        return kernels.divergence(self, 0.0, student, teacher, batch)
