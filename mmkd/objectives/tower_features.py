"""Distillation of what the vision tower sees, place by place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mmkd.errors import ConfigError
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import choice
from mmkd.objectives.hidden_states import cosine, relative_mse
from mmkd.objectives.registry import register


@register("tower_features")
class TowerFeatures(Objective):
    """Match the patch features that each side's vision tower hands to its projector.

    Both maps are averaged by area to the coarser of the two grids, odd ones too: a finer one cannot be known. With
    s = W f_s and t = f_t at a place (W: a trainable linear), its loss is

        mse:      |s - t|^2 / |t|^2
        cosine:   1 - cos(s, t)

    mean over the places of an image (FitNets, arXiv 1412.6550, with the error in units of the teacher's), then mean
    over all images of the optimiser step, tiles counting as images. The teacher is detached.

    Args:
        distance: mse or cosine.
        linear: "auto" puts W where the towers' widths differ, "always" also where they agree (towers of two families).
    """

    teacher_tower = True

    def __init__(self, distance: str = "mse", linear: str = "auto"):
        super().__init__()
        self.distance = choice(self.name, "distance", distance, ("mse", "cosine"))
        self.always = choice(self.name, "linear", linear, ("auto", "always")) == "always"
        self.linear: nn.Module = nn.Identity()

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        return Needs(tower=True)

    def make_heads(self, student_width: int, teacher_width: int | None) -> None:
        if teacher_width is not None and (self.always or student_width != teacher_width):
            self.linear = nn.Linear(student_width, teacher_width, bias=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if teacher is None or student.tower is None or teacher.tower is None or batch.images is None:
            raise ValueError("tower_features: the towers' features of one side are missing.")
        if len(student.tower) != len(teacher.tower):
            raise ConfigError(
                f"tower_features: the teacher cuts the images of this batch into {len(teacher.tower)} tiles, the "
                f"student into {len(student.tower)}; compose both with the same vision.tiles."
            )
        loss = self._images(student.tower, teacher.tower.detach())  # [M]
        total = (loss * batch.images).sum()  # blank images that stand in for none count nothing
        report = {f"tower_{self.distance}": Ratio(total.detach(), batch.images.sum())}
        return Losses(total / batch.image_normalizer, report)

    def _images(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of each image, [M], fp32 or wider, from maps [M, C, rows, cols]."""
        wide = torch.promote_types(student.dtype, torch.float32)
        grid = [min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
        with torch.autocast(student.device.type, enabled=False):
            # [M, C, rows, cols] -> [M, places, C]
            s, t = (adaptive_avg_pool2d(side.to(wide), grid).flatten(2).movedim(1, 2) for side in (student, teacher))
            if isinstance(self.linear, nn.Linear):
                s = self.linear(s.to(self.linear.weight.dtype)).to(wide)
            return (relative_mse if self.distance == "mse" else cosine)(s, t).mean(-1)
