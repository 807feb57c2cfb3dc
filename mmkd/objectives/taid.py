"""TAID: a target that moves from the student to the teacher."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mmkd.errors import ConfigError
from mmkd.objectives.base import Ratio
from mmkd.objectives.checks import number
from mmkd.objectives.chunked import ChunkLogits
from mmkd.objectives.registry import register
from mmkd.objectives.token_loss import TokenLoss


@register("taid")
class TAID(TokenLoss):
    """Temporally adaptive interpolated distillation on answer tokens (Shing et al. 2025, arXiv 2501.16937):

        - sum p_t log q,    p_t = softmax((1 - t) z_s + t z_t)

    with the student's logits z_s detached inside p_t: the gradient of KL(p_t || q). t goes from t_start to t_end, at
    least as fast as a straight line over the stage's steps, and faster while the loss J falls. After each step

        d = (J_before - J) / J_before,   m <- momentum m + (1 - momentum) d
        t <- min(t_end, max(line, t + alpha sigmoid(m) (1 - t)))

    J is the mean over all answer tokens of an optimiser step, on all ranks, and t moves once a step. (The released code
    moves it at each forward from its own rank's loss: ranks drift apart, and accumulation moves it faster.) t, m and J
    are buffers, so a resumed run goes on with them; a new stage begins anew. Reports "taid_t".

    Args:
        t_start, t_end: where t begins and ends, 0 <= t_start < t_end <= 1.
        alpha: most that t may run ahead in one step; 0 leaves the straight line.
        momentum: of the mean of d, the paper's beta.
        chunk: most answer tokens that pass the heads at once.
    """

    label = "taid"
    teacher = True
    t: Tensor
    mean_change: Tensor
    before: Tensor
    sums: Tensor

    def __init__(
        self,
        t_start: float = 0.4,
        t_end: float = 1.0,
        alpha: float = 5e-4,
        momentum: float = 0.99,
        chunk: int = 512,
    ):
        super().__init__(chunk)
        self.t_start = number(self.name, "t_start", t_start, least=0, below=1)
        self.t_end = number(self.name, "t_end", t_end, above=0, most=1)
        if self.t_start >= self.t_end:
            raise ConfigError(f"{self.name}: t_start={t_start} and t_end={t_end}, expected t_start < t_end.")
        self.alpha = number(self.name, "alpha", alpha, least=0, most=1)
        self.momentum = number(self.name, "momentum", momentum, least=0, below=1)
        self.register_buffer("t", torch.tensor(self.t_start))
        self.register_buffer("mean_change", torch.tensor(0.0))  # m
        self.register_buffer("before", torch.tensor(torch.nan))  # J of the step before; nan after none
        # Loss and answer tokens of the step so far, on this rank; empty whenever a checkpoint is written.
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64), persistent=False)

    def token_loss(self, logits: ChunkLogits) -> Tensor:
        target = logits.interpolated_log_probs(self.t).exp()
        return -(target * logits.student_log_probs()).sum(-1)

    def summed(self, total: Tensor, tokens: int) -> dict[str, Ratio]:
        count = total.new_tensor(tokens)
        self.sums += torch.stack([total, count])
        return {"t": Ratio(self.t.to(total) * count, count)}

    def step_finished(self, progress: float) -> None:
        if dist.is_initialized():
            dist.all_reduce(self.sums)
        total, tokens = self.sums
        if tokens:
            self._move(total / tokens, progress)
        self.sums.zero_()

    def _move(self, loss: Tensor, progress: float) -> None:
        """Update t with J = `loss`; the first J is only kept."""
        loss = loss.to(self.before)
        if not self.before.isnan():
            change = (self.before - loss) / (self.before + 1e-15)
            self.mean_change.lerp_(change, 1 - self.momentum)
            line = self.t_start + (self.t_end - self.t_start) * progress
            ahead = self.t + self.alpha * self.mean_change.sigmoid() * (1 - self.t)
            self.t.copy_(ahead.clamp(min=line).clamp(max=self.t_end))
        self.before.copy_(loss)
