"""Distillation of hidden states: what chosen layers know at each answer row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmkd.errors import ConfigError
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import choice, number
from mmkd.objectives.layer_pairs import layer_choice, layer_pairs
from mmkd.objectives.registry import register
from mmkd.objectives.sparse import SparseTargets


def relative_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """|s - t|^2 / |t|^2 of each row, [N]: the mean squared error in units of the teacher's mean square."""
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(1e-12)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) of each row, [N]."""
    return 1 - functional.cosine_similarity(student, teacher, dim=-1)


def infonce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-log of the chance to tell a row's own teacher state from those of the other rows, [N]; 0 for a lone row."""
    scores = functional.normalize(student, dim=-1) @ functional.normalize(teacher, dim=-1).T / temperature  # [N, N]
    return -scores.log_softmax(-1).diagonal()


@register("hidden_states")
class HiddenStates(Objective):
    """Match the output of mapped decoder layers at the answer rows.

    With s = W h_s and t = h_t of a pair of layers (W: a trainable linear, one a pair), a row's loss is

        mse:      |s - t|^2 / |t|^2
        cosine:   1 - cos(s, t)
        infonce:  -log exp(cos(s_i, t_i) / tau) / sum_j exp(cos(s_i, t_j) / tau), j over the micro batch's answer rows

    summed over answer rows, mean over pairs; the teacher is detached. mse follows TinyBERT (arXiv 1909.10351), but
    relative: hidden states grow by orders of magnitude over depth, and plain errors would be the last pair's alone.
    infonce is the MI-alpha loss of Distiller (arXiv 2109.11105) at alpha = 1, a bound on mutual information; it depends
    on which rows share a micro batch, as every contrastive loss does.

    Args:
        layers: as of `voco_attention`: "all", "every n", student layers, or [student, teacher] pairs.
        distance: mse, cosine or infonce.
        linear: "auto" puts W where widths differ, "always" also where they agree (sides of different families).
        temperature: tau of infonce, 0.1 by default; refused beside another distance.
    """

    teacher = True
    hidden_teacher = True

    def __init__(
        self, layers: Any = "all", distance: str = "mse", linear: str = "auto", temperature: float | None = None
    ):
        super().__init__()
        self.layers = layer_choice(self.name, layers)
        self.distance = choice(self.name, "distance", distance, ("mse", "cosine", "infonce"))
        self.linear = choice(self.name, "linear", linear, ("auto", "always"))
        if temperature is not None and distance != "infonce":
            raise ConfigError(
                f"{self.name}: temperature={temperature!r} has no place beside distance {distance}: it is infonce's."
            )
        self.temperature = number(self.name, "temperature", 0.1 if temperature is None else temperature, above=0)
        self.pairs: list[tuple[int, int]] = []
        self.heads = nn.ModuleDict()  # by student layer

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        self.pairs = layer_pairs(self.name, self.layers, student_layers, teacher_layers or student_layers)
        students, teachers = zip(*self.pairs, strict=True)
        return Needs(True, student_hidden=tuple(sorted(students)), teacher_hidden=tuple(sorted(set(teachers))))

    def make_heads(self, student_width: int, teacher_width: int | None) -> None:
        if teacher_width is None or (self.linear == "auto" and student_width == teacher_width):
            return
        for s, _ in self.pairs:
            self.heads[str(s)] = nn.Linear(student_width, teacher_width, bias=False)

    def forward(self, student: Outputs, teacher: Outputs | SparseTargets | None, batch: AnswerBatch) -> Losses:
        if teacher is None or not self.pairs:
            raise ValueError("hidden_states: call needs() and make_heads() first, and give it the teacher's outputs.")
        count = torch.tensor(len(batch.rows), device=batch.rows.device)
        sums, report = [], {}
        for s, t in self.pairs:
            total = self._rows(s, student.hidden[s], teacher.hidden[t].detach()).sum()
            sums.append(total)
            report[f"hidden_{self.distance}/layer_{s}"] = Ratio(total.detach(), count)
        loss = torch.stack(sums).mean()
        report[f"hidden_{self.distance}"] = Ratio(loss.detach(), count)
        return Losses(loss / batch.normalizer, report)

    def _rows(self, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of each answer row of one pair, [N], fp32 or wider."""
        if str(layer) in self.heads:
            linear = self.heads[str(layer)]
            student = linear(student.to(linear.weight.dtype))  # [N, D_t]
        wide = torch.promote_types(student.dtype, torch.float32)
        student, teacher = student.to(wide), teacher.to(wide)
        with torch.autocast(student.device.type, enabled=False):
            if self.distance == "infonce":
                return infonce(student, teacher, self.temperature)
            return {"mse": relative_mse, "cosine": cosine}[self.distance](student, teacher)
