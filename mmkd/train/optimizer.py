"""What moves the weights: parameter groups, AdamW, and the learning-rate schedule of a stage."""

from __future__ import annotations

from typing import Any

import torch

from mmkd.compose import parts
from mmkd.config.schema import StageSection
from mmkd.errors import ConfigError


def build_optimizer(task: Any, stage: StageSection) -> torch.optim.Optimizer:
    """AdamW over what `task` trains. Raises ConfigError where that is nothing."""
    return torch.optim.AdamW(parameter_groups(task, stage), betas=(0.9, 0.95))


def parameter_groups(task: Any, stage: StageSection) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and weight decay (none on vectors: norms and biases).

    Adapters learn at the rate of the language model, in whose place they are.
    """
    of_parts = {**stage.learning_rates, "adapters": stage.learning_rates.get("language", stage.learning_rate)}
    rates = {
        id(parameter): of_parts[name]
        for name, parameters in parts(task.student).items()
        if name in of_parts
        for parameter in parameters
    }
    groups: dict[tuple[float, float], list[Any]] = {}
    for parameter in task.parameters():
        if not parameter.requires_grad:
            continue
        rate = rates.get(id(parameter), stage.learning_rate)
        groups.setdefault((rate, stage.weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    if not groups:
        raise ConfigError(f"stage {stage.name}: nothing is trained; name a part of the model in stage.trainable.")
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]


def learning_rate_schedule(optimizer: torch.optim.Optimizer, stage: StageSection) -> Any:
    """A linear warm-up, then the stage's schedule, counted in optimiser steps."""
    from transformers import get_scheduler

    return get_scheduler(
        {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[stage.schedule],
        optimizer,
        num_warmup_steps=round(stage.warmup * stage.steps),
        num_training_steps=stage.steps,
    )
