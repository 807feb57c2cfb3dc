"""The trainer of vision-language models, for labelled images: other counts, other optimisers, the same checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.optim import Lamb
from transformers import get_scheduler

from mmkd.config.vision_schema import RecipeSection
from mmkd.train.trainer import DistillTrainer
from mmkd.vision_distill.task import VisionTask

AVERAGE = "average.safetensors"  # in a checkpoint, beside what DeepSpeed writes


def build_optimizer(task: VisionTask, recipe: RecipeSection) -> torch.optim.Optimizer:
    """AdamW, LAMB, or SGD with Nesterov momentum, over student and heads. Vectors (norms and biases), and what timm
    names for the student (class token, position embedding), are not decayed."""
    undecayed: Any = getattr(task.student, "no_weight_decay", set)  # timm's CNNs name none
    named = undecayed()
    plain, decayed = [], []
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.dim() <= 1 or name.removeprefix("student.") in named
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    if recipe.optimizer == "lamb":
        return Lamb(groups, lr=recipe.learning_rate, max_grad_norm=None)  # clipped by gradient_clipping, as the others
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def learning_rate_schedule(optimizer: torch.optim.Optimizer, recipe: RecipeSection) -> Any:
    """A linear warm-up, then a cosine down to `least_learning_rate`, or a tenth at each drop, counted in optimiser
    steps."""
    if recipe.schedule == "step":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: dropped(step, recipe))
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=round(recipe.warmup * recipe.steps),
        num_training_steps=recipe.steps,
        scheduler_specific_kwargs={"min_lr_rate": recipe.least_learning_rate / recipe.learning_rate},
    )


def dropped(step: int, recipe: RecipeSection) -> float:
    """Share of the learning rate at an optimiser step of schedule `step`."""
    warmup = round(recipe.warmup * recipe.steps)
    if step < warmup:
        return step / warmup
    passed = sum(step >= round(drop * recipe.steps) for drop in recipe.drops)
    return max(0.1**passed, recipe.least_learning_rate / recipe.learning_rate)


class VisionTrainer(DistillTrainer):
    """Trains a VisionTask. Micro batches are of one size, so the mean over ranks and accumulation, which DeepSpeed and
    the Trainer take, is the mean over the step's images."""

    build_optimizer = staticmethod(build_optimizer)
    learning_rate_schedule = staticmethod(learning_rate_schedule)

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        average = self.task.average
        if average is not None:
            average.to(self.args.device)
            if resume_from_checkpoint:
                average.module.load_state_dict(load_file(Path(resume_from_checkpoint) / AVERAGE))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.task.average is not None and self.args.should_save:
            save_file(self.task.average.module.state_dict(), Path(output_dir) / AVERAGE)

    def student_weights(self) -> dict[str, torch.Tensor] | None:
        """As a DistillTrainer's; of the moving average, where the recipe has one."""
        if self.task.average is None:
            return super().student_weights()
        return self.task.average.module.state_dict() if self.args.should_save else None

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        samples = self._take(epoch_iterator, num_batches)
        self.tokens += float(sum(len(batch["labels"]) for batch in samples))
        return samples, None

    def _figures(self) -> dict[str, float]:
        figures = super()._figures()
        del figures["padding"]
        return {name.replace("tokens", "images"): x for name, x in figures.items()}
