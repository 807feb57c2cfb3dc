"""Stages that train on preference pairs: which they are, and what they cannot do, said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from mmkd.config.schema import Config, ObjectiveSection, StageSection
from mmkd.errors import ConfigError
from mmkd.objectives import TokenLoss, build


def reads_pairs(sections: Sequence[ObjectiveSection]) -> bool:
    """Whether one of these objectives reads preference pairs. Raises ConfigError for an unknown one."""
    return any(build(section).reads_pairs for section in sections)


def any_reads_pairs(config: Config) -> bool:
    """Whether a stage of the config does."""
    return any(reads_pairs(stage.objectives or config.objectives) for stage in config.stages)


def check_pairs(config: Config) -> None:
    """Refuse stages on preference pairs that ask for what cannot be. Raises ConfigError."""
    for stage in config.stages:
        sections = stage.objectives or config.objectives
        if reads_pairs(sections):
            _check(config, stage, sections)


def _check(config: Config, stage: StageSection, sections: Sequence[ObjectiveSection]) -> None:
    built = [build(section) for section in sections]
    paired = next(objective for objective in built if objective.reads_pairs)
    at = f"stage {stage.name}: {paired.name}"
    others = [one.name for one in built if not (one.reads_pairs or isinstance(one, TokenLoss))]
    if others:
        raise ConfigError(
            f"{at} goes with objectives on logits only, which can leave rejected answers out; {others[0]} learns from "
            "all answers. Give it a stage of its own."
        )
    if stage.on_policy is not None:
        raise ConfigError(
            f"{at} reads pairs of answers, and on_policy puts one answer of the student in their place; "
            "take on_policy out."
        )
    if config.data.rationales is not None:
        raise ConfigError(f"{at} reads pairs of answers, and data.rationales makes other pairs of a row; take one out.")
    reference = next((one.name for one in built if one.reads_pairs and one.teacher), None)
    if reference is not None:
        _check_reference(config, stage, f"stage {stage.name}: {reference}")


def _check_reference(config: Config, stage: StageSection, at: str) -> None:
    teacher = config.teacher
    if teacher is None:
        raise ConfigError(
            f"{at} compares with a reference, and the config has no teacher. Name the model that training starts from, "
            f"teacher: {{kind: live, model: {config.student.init or '..'}}}, or use simpo, which needs none."
        )
    moved = sorted(set(stage.trainable) - {"language", "voco"})
    if teacher.kind == "shared" and (stage.lora is None or moved):
        found = "has no lora" if stage.lora is None else f"trains {', '.join(moved)}"
        raise ConfigError(
            f"{at} has teacher.kind: shared as its reference, the student without its adapters, and the stage {found}: "
            "the reference would learn, too. Give it lora and trainable: [language, voco], or use kind: live."
        )
    if teacher.endpoint is not None:
        raise ConfigError(
            f"{at} asks its reference about the answers of the data, and teacher.endpoint scores its own; use "
            "teacher.model."
        )
