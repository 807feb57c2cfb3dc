"""OFA-KD in a logit space that is not the classes': branches give vectors, and the space gives their logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmkd.errors import ConfigError
from mmkd.objectives.ofa import ofa_loss
from mmkd.vision_distill.branches import build_branches
from mmkd.vision_distill.exits import Staged
from mmkd.vision_distill.feature_losses import resampled
from mmkd.vision_distill.methods import METHODS, OFA, Method, Side, build_method, method_options
from mmkd.vision_distill.spaces import Space, SpaceTargets, cosine_logits


class SpaceOFA(OFA):
    """As `OFA`, with vectors v of the space's width d in the place of class logits, read as scale * cosine(v, row): a
    branch costs D x d for its last layer, however many rows there are.

    In a space of whole images the four branches are the published ones, and a linear layer on the classifier's input
    gives the final vector. In a dense space a stage's head is a 1x1 convolution on its map, and the last stage is the
    final one; student and teacher are averaged by area to the coarser of the two grids (odd ones too), the teacher's
    logits included. The loss is the mean over images, or over all patches.

    Raises: ConfigError in a space without targets, where only form: released with eps: 1, soft cross-entropy, is
        defined.
    """

    def __init__(self, space: Space, **options: Any):
        super().__init__(**options)
        self.space = space
        if not space.targeted:
            require_no_target(self)
        self.final: nn.Module = nn.Identity()

    def build_heads(self, student: Side, teacher: Side, classes: int) -> None:
        width = self.space.width
        if self.space.dense:
            heads = [nn.Conv2d(exit.channels, width, 1) for exit in student.exits]
            self.branches, self.final = nn.ModuleList(heads[:-1]), heads[-1]
        else:
            self.branches = build_branches(student.exits, teacher.width, width)
            self.final = nn.Linear(student.width, width)

    def forward(self, student: Staged, teacher: Any, labels: Tensor) -> Tensor:
        loss = self._dense if self.space.dense else self._pooled
        stages = zip(self.branches, student.stages, self.eps[:-1], strict=False)  # the dense final head is a stage's
        total = self.stage_weight * sum(loss(branch, stage, teacher, eps) for branch, stage, eps in stages)
        last = student.stages[-1] if self.space.dense else student.embedding
        return total + self.final_weight * loss(self.final, last, teacher, self.eps[-1])

    def _pooled(self, head: nn.Module, features: Any, teacher: SpaceTargets, eps: float) -> Tensor:
        return self._loss(head(features), teacher.logits, teacher, eps)

    def _dense(self, head: nn.Module, stage: Any, teacher: SpaceTargets, eps: float) -> Tensor:
        assert teacher.grid is not None
        grid = [min(a, b) for a, b in zip(stage.map.shape[-2:], teacher.grid, strict=True)]
        vectors = head(resampled(stage.map, grid)).movedim(1, 3).flatten(0, 2)  # [B * rows * columns, d]
        theirs = teacher.logits.unflatten(0, (-1, *teacher.grid)).movedim(3, 1)  # [B, M, rows, columns]
        return self._loss(vectors, resampled(theirs, grid).movedim(1, 3).flatten(0, 2), teacher, eps)

    def _loss(self, vectors: Tensor, logits: Tensor, teacher: SpaceTargets, eps: float) -> Tensor:
        ours = cosine_logits(vectors, teacher.rows, teacher.scale)  # [n, M]
        targets = teacher.targets
        if targets is None:
            targets = logits.argmax(-1) * 0  # any: at eps 1 the released form weighs all rows alike
        form: Any = self.form
        return ofa_loss(ours, logits, targets, eps=eps, form=form, temperature=self.temperature).mean()


def require_no_target(method: OFA) -> None:
    """Raises ConfigError for a loss that enhances a target, in a space where nobody knows it."""
    if method.form != "released" or set(method.eps) != {1.0}:
        raise ConfigError(
            "ofa: in this space nobody knows the true row, so there is no target to enhance; write form: released "
            "and eps: 1."
        )


def require_in_space(name: str, at: str) -> None:
    """Raises ConfigError for a method that has no meaning in a space other than that of the classes."""
    if METHODS[name].teacher and name != "ofa":
        raise ConfigError(
            f"config: {at}.name is {name}, which compares two classifiers; in a space other than labels allowed: "
            "cross_entropy, ofa."
        )


def build_space_method(space: Space | None, name: str, options: dict[str, Any], at: str, config: Any = None) -> Method:
    """The method of a config section in a space; None is that of the classes.

    Raises: ConfigError for a method that compares class logits or features of a classifier, and as `build_method`.
    """
    if space is None or (name in METHODS and not METHODS[name].teacher):
        return build_method(name, options, at, config)
    checked = method_options(name, options, at, config)
    require_in_space(name, at)
    return SpaceOFA(space, **checked)
