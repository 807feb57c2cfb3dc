"""The trainer of vision-language models, for labelled images: other counts, other optimisers, the same checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import get_scheduler

from mmkd.config.vision_schema import RecipeSection
from mmkd.train.trainer import DistillTrainer
from mmkd.vision_distill.task import VisionTask


def build_optimizer(task: VisionTask, recipe: RecipeSection) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over student and heads. Vectors (norms and biases), and what timm names for
    the student (class token, position embedding), are not decayed."""
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
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def learning_rate_schedule(optimizer: torch.optim.Optimizer, recipe: RecipeSection) -> Any:
    """A linear warm-up, then a cosine down to `least_learning_rate`, counted in optimiser steps."""
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=round(recipe.warmup * recipe.steps),
        num_training_steps=recipe.steps,
        scheduler_specific_kwargs={"min_lr_rate": recipe.least_learning_rate / recipe.learning_rate},
    )


class VisionTrainer(DistillTrainer):
    """Trains a VisionTask. Micro batches are of one size, so the mean over ranks and accumulation, which DeepSpeed and
    the Trainer take, is the mean over the step's images."""

    build_optimizer = staticmethod(build_optimizer)
    learning_rate_schedule = staticmethod(learning_rate_schedule)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        samples = self._take(epoch_iterator, num_batches)
        self.tokens += float(sum(len(batch["labels"]) for batch in samples))
        return samples, None

    def _figures(self) -> dict[str, float]:
        figures = super()._figures()
        del figures["padding"]
        return {name.replace("tokens", "images"): x for name, x in figures.items()}
