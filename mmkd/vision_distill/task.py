"""One training step's mathematics: student, teacher and methods behind one `forward(batch) -> loss`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mmkd.errors import ConfigError, TrainingError
from mmkd.objectives.base import Ratio
from mmkd.train.learned import LearningTask
from mmkd.vision_distill.exits import Staged, classifier_name, find_exits, read_staged
from mmkd.vision_distill.methods import Method, Side, likeliest
from mmkd.vision_distill.spaces import Space, SpaceTargets


class VisionTask(LearningTask):
    """Owns what is trained: the student and the heads of its methods. The teacher is only referred to, so that it
    reaches neither optimiser nor checkpoint.

    Args:
        student: a timm classifier; student_size: (height, width) of its images.
        methods: (method, weight) pairs.
        teacher, teacher_size: None where no method needs one.
        bf16: multiply in bf16; weights, batch-norm statistics and losses stay fp32.
        space: in which the teacher speaks where that is not the classes; `teacher` is then its model.
        average: decay of a moving average of the student, which is then what a run leaves.

    Raises: ConfigError where a method needs a teacher and there is none, or stages that a side does not have.
    """

    def __init__(
        self,
        student: nn.Module,
        student_size: tuple[int, int],
        methods: list[tuple[Method, float]],
        teacher: nn.Module | None = None,
        teacher_size: tuple[int, int] | None = None,
        bf16: bool = False,
        space: Space | None = None,
        average: float | None = None,
    ):
        super().__init__()
        self.student = student
        self.methods = nn.ModuleList(method for method, _ in methods)
        self.weights = [weight for _, weight in methods]
        self.bf16 = bf16
        needy = [method.name for method, _ in methods if method.teacher]
        if needy and teacher is None:
            raise ConfigError(f"objectives {', '.join(needy)} need a teacher, and the config has none: add teacher.")
        # Not a submodule. One that no method reads is not run.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False) if needy and teacher else None)
        wanted = any(method.student_stages for method, _ in methods)
        self.student_exits = find_exits(student, student_size, "student") if wanted else []
        object.__setattr__(self, "space", space)  # its model is the teacher
        wanted = space is None and any(method.teacher_stages for method, _ in methods)
        self.teacher_exits = find_exits(teacher, teacher_size or student_size, "teacher") if wanted else []
        if self.teacher is not None:
            ours = Side(self.student_exits, width(student))
            theirs = Side(self.teacher_exits, width(self.teacher) if space is None else space.width)
            for method, _ in methods:
                method.build_heads(ours, theirs, classes(student))
        # Not a submodule: DeepSpeed would neither write what is frozen nor give it back.
        object.__setattr__(self, "average", ModelEmaV3(student, average) if average else None)
        self.report: dict[str, Ratio] = {}

    def step_finished(self, progress: float) -> None:
        """Called by the trainer after each optimiser step; no method here changes between steps."""
        if self.average is not None:
            self.average.update(self.student)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Loss of one micro batch.

        Args:
            batch: `student_pixels` and `teacher_pixels` [B, 3, H, W], each side's own; `labels` [B], of mixed
                images shares [B, K].

        The report of sums and counts is left in `self.report`.
        """
        labels = batch["labels"]
        with torch.autocast(labels.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            teacher = self._teach(batch) if self.teacher is not None else None
            try:
                student = read_staged(self.student, self.student_exits, batch["student_pixels"])
                losses = [method(student, teacher, labels) for method in self.methods]
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise TrainingError(
                    f"one image a micro batch gives a batch norm nothing to compare ({error}): raise "
                    "recipe.micro_batch_size, or recipe.batch_size for as many ranks."
                ) from error
        self.report = report(student, teacher, labels)
        count = labels.new_tensor(len(labels))
        for method, loss in zip(self.methods, losses, strict=True):
            self.report[str(method.name)] = Ratio(loss.detach() * count, count)
        return torch.stack([loss * weight for loss, weight in zip(losses, self.weights, strict=True)]).sum()

    @torch.no_grad()
    def _teach(self, batch: dict[str, Any]) -> Staged | SpaceTargets:
        if self.space is not None:
            return self.space.teach(batch["teacher_pixels"], batch["labels"], batch["captions"])
        return read_staged(self.teacher, self.teacher_exits, batch["teacher_pixels"])


@torch.no_grad()
def report(student: Staged, teacher: Staged | SpaceTargets | None, labels: Tensor) -> dict[str, Ratio]:
    """accuracy (top-1), and with a teacher teacher_accuracy and agree (both sides' top-1 is the same class); of one in
    another space teacher_accuracy alone, where the true row is known."""
    labels = likeliest(labels)
    count = labels.new_tensor(len(labels))
    best = student.logits.argmax(-1)
    found = {"accuracy": Ratio((best == labels).sum(), count)}
    if isinstance(teacher, SpaceTargets):
        if teacher.targets is not None:
            found["teacher_accuracy"] = Ratio((teacher.logits.argmax(-1) == teacher.targets).sum(), count)
    elif teacher is not None:
        theirs = teacher.logits.argmax(-1)
        found["teacher_accuracy"] = Ratio((theirs == labels).sum(), count)
        found["agree"] = Ratio((theirs == best).sum(), count)
    return found


def width(model: Any) -> int:
    """Width of the classifier's input. Raises: as `classes`."""
    return _classifier(model).weight.shape[1]


def classes(model: Any) -> int:
    """Classes that the model tells apart, K. Raises: ConfigError where its classifier is no linear layer."""
    return _classifier(model).weight.shape[0]


def _classifier(model: Any) -> Any:
    layer = model.get_submodule(classifier_name(model))
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ConfigError(
            f"the classifier of {type(model).__name__} is a {type(layer).__name__}, not one linear layer, whose input "
            "objectives read; take another model."
        )
    return layer
