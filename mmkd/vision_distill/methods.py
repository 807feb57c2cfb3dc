"""What a student may learn from: one class a method, the loss itself in `ofa`, `logit_losses` and `feature_losses`.

Trainable heads belong to the method: they reach optimiser and checkpoint, and never the exported student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from mmkd.config.load import check_options
from mmkd.config.problems import near
from mmkd.errors import ConfigError
from mmkd.objectives.checks import choice, count, number
from mmkd.objectives.ofa import FORMS, ofa_loss, stage_eps
from mmkd.vision_distill import feature_losses, logit_losses
from mmkd.vision_distill.branches import build_branches
from mmkd.vision_distill.exits import STAGES, Exit, Staged


@dataclass(frozen=True)
class Side:
    """One side's shapes: its exits (none where no method reads them), and the width of the classifier's input."""

    exits: list[Exit]
    width: int


class Method(nn.Module):
    """A training signal. Keyword arguments of `__init__` are its options.

    Attributes:
        teacher: whether it needs one; student_stages, teacher_stages: whether it reads that side's staged exits.
        mixed: whether it takes images that are mixed of two.
        least: images of a micro batch below which it, or a term of it, says nothing.
    """

    name = ""
    teacher = True
    student_stages = teacher_stages = False
    mixed = True
    least = 1

    def build_heads(self, student: Side, teacher: Side, classes: int) -> None:
        """Make the trainable parts, if the method has any."""

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        """Scalar loss of a batch, its mean over the samples. labels: [B]; of mixed images shares [B, K]."""
        raise NotImplementedError

    def number(self, option: str, value: Any, **limits: float) -> float:
        return number(self.name, option, value, **limits)


def likeliest(labels: Tensor) -> Tensor:
    """[B] classes of labels [B], or of shares [B, K]."""
    return labels.argmax(-1) if labels.dim() == 2 else labels


class CrossEntropy(Method):
    """Cross-entropy with the labels.

    Args:
        smoothing: share of the target that is spread over all classes.
        binary: ask of each class by itself whether it is there; see `logit_losses.binary_cross_entropy`.
    """

    name = "cross_entropy"
    teacher = False

    def __init__(self, smoothing: float = 0.0, binary: bool = False):
        super().__init__()
        self.binary = binary
        self.smoothing = self.number("smoothing", smoothing, least=0)
        if smoothing >= 1:
            raise ConfigError(f"cross_entropy: smoothing={smoothing!r}, expected a number below 1.")

    def forward(self, student: Staged, teacher: Staged | None, labels: Tensor) -> Tensor:
        if not self.binary:
            return cross_entropy(student.logits.float(), labels, label_smoothing=self.smoothing)
        shares = labels if labels.dim() == 2 else one_hot(labels, student.logits.shape[1])
        return logit_losses.binary_cross_entropy(student.logits, shares, self.smoothing)


class OFA(Method):
    """OFA-KD (Hao et al. 2023): final_weight * L(final logits) + stage_weight * sum over four branches of L.

    The form `paper` holds the labels' cross-entropy, so it goes without the objective cross_entropy; `released` does
    not, and wants it. The published program's stage_weight is 1; the authors' own log has 0.1. The target of a mixed
    image is the class with the larger share, as in the program.

    Args:
        eps: enhancement of the target; one number, or five: for each stage, then the final logits.
        temperature: divides the logits of both sides.
    """

    name = "ofa"
    student_stages = True

    def __init__(
        self,
        eps: float | list[float] = 1.0,
        form: Literal["paper", "released"] = "paper",
        temperature: float = 1.0,
        final_weight: float = 1.0,
        stage_weight: float = 1.0,
    ):
        super().__init__()
        self.eps = stage_eps(eps, STAGES, self.name)
        self.form = choice(self.name, "form", form, FORMS)
        self.temperature = self.number("temperature", temperature, above=0)
        self.final_weight = self.number("final_weight", final_weight, least=0)
        self.stage_weight = self.number("stage_weight", stage_weight, least=0)
        self.branches = nn.ModuleList()

    def build_heads(self, student: Side, teacher: Side, classes: int) -> None:
        self.branches = build_branches(student.exits, teacher.width, classes)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        labels = likeliest(labels)

        def loss(logits: Tensor, eps: float) -> Tensor:
            form: Any = self.form
            return ofa_loss(logits, teacher.logits, labels, eps=eps, form=form, temperature=self.temperature).mean()

        exits = zip(self.branches, student.stages, self.eps[:-1], strict=True)
        stages = [loss(branch(stage), eps) for branch, stage, eps in exits]
        return self.final_weight * loss(student.logits, self.eps[-1]) + self.stage_weight * sum(stages)


class KD(Method):
    """Hinton's distillation; see `logit_losses.kd`."""

    name = "kd"

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = self.number("temperature", temperature, above=0)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        return logit_losses.kd(student.logits, teacher.logits, self.temperature)


class DKD(Method):
    """Decoupled KD; see `logit_losses.dkd`. The target of a mixed image is the class with the larger share."""

    name = "dkd"

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, temperature: float = 1.0):
        super().__init__()
        self.alpha, self.beta = self.number("alpha", alpha, least=0), self.number("beta", beta, least=0)
        self.temperature = self.number("temperature", temperature, above=0)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        targets = likeliest(labels)
        return logit_losses.dkd(student.logits, teacher.logits, targets, self.alpha, self.beta, self.temperature)


class DIST(Method):
    """Relations among classes and among samples; see `logit_losses.dist`."""

    name = "dist"
    least = 2

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0):
        super().__init__()
        self.beta, self.gamma = self.number("beta", beta, least=0), self.number("gamma", gamma, least=0)
        self.temperature = self.number("temperature", temperature, above=0)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        return logit_losses.dist(student.logits, teacher.logits, self.beta, self.gamma, self.temperature)


class FitNet(Method):
    """Maps of all four stages; sum over stages, see `feature_losses.fitnet`. Across families a 1x1 convolution brings
    the student's channels to the teacher's."""

    name = "fitnet"
    student_stages = teacher_stages = True

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleList()

    def build_heads(self, student: Side, teacher: Side, classes: int) -> None:
        pairs = zip(student.exits, teacher.exits, strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(s.channels, t.channels, 1) for s, t in pairs)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        stages = zip(self.adapters, student.stages, teacher.stages, strict=True)
        losses: Sequence[Tensor] = [feature_losses.fitnet(adapter(s.map), t.map) for adapter, s, t in stages]
        return sum(losses[1:], losses[0])


class CRD(Method):
    """Contrast within the batch; see `feature_losses.crd`. Both sides' embeddings are projected to `dimensions`."""

    name = "crd"
    mixed = False  # images of one class are no negatives, and a mixed one is of two
    least = 2

    def __init__(self, dimensions: int = 128, temperature: float = 0.07):
        super().__init__()
        self.dimensions = count(self.name, "dimensions", dimensions)
        self.temperature = self.number("temperature", temperature, above=0)
        self.project = nn.ModuleList()

    def build_heads(self, student: Side, teacher: Side, classes: int) -> None:
        self.project = nn.ModuleList(nn.Linear(side.width, self.dimensions) for side in (student, teacher))

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        ours, theirs = self.project[0](student.embedding), self.project[1](teacher.embedding)
        return feature_losses.crd(ours, theirs, labels, self.temperature)


class RKD(Method):
    """Distances and angles among the batch's embeddings; see `feature_losses.rkd`."""

    name = "rkd"
    least = 3

    def __init__(self, distance: float = 25.0, angle: float = 50.0):
        super().__init__()
        self.distance, self.angle = self.number("distance", distance, least=0), self.number("angle", angle, least=0)

    def forward(self, student: Staged, teacher: Staged, labels: Tensor) -> Tensor:
        return feature_losses.rkd(student.embedding, teacher.embedding, self.distance, self.angle)


METHODS: dict[str, type[Method]] = {
    method.name: method for method in (CrossEntropy, OFA, KD, DKD, DIST, FitNet, CRD, RKD)
}


def method_options(name: str, options: dict[str, Any], at: str = "", config: Any = None) -> dict[str, Any]:
    """The checked options of a config section; see `build_method`."""
    if name not in METHODS:
        raise ConfigError(f"config: {at}.name is {name!r}; allowed: {', '.join(sorted(METHODS))}.{near(name, METHODS)}")
    return check_options(name, options, METHODS[name], at=at, config=config)


def build_method(name: str, options: dict[str, Any], at: str = "", config: Any = None) -> Method:
    """The method of a config section.

    Args:
        at: key path of the section, e.g. `objectives[1]`; config: the loaded config. Both only for messages.

    Raises: ConfigError for an unknown name or option, or a value that the method does not take.
    """
    checked = method_options(name, options, at, config)
    return METHODS[name](**checked)
