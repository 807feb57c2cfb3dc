"""What a config's teacher cannot do, said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmkd.config.schema import Config, ObjectiveSection, TeacherSection
from mmkd.errors import ConfigError
from mmkd.objectives import ForwardKL, build, names
from mmkd.objectives.registry import sparse_capable
from mmkd.teachers.cached import require_same_teacher
from mmkd.teachers.quantized import require_bitsandbytes
from mmkd.teachers.targets import TargetSettings, given_settings

KINDS = ("live", "cached", "shared")


def check_teacher(config: Config) -> None:
    """Refuse a teacher section that contradicts itself, or objectives that the teacher cannot serve.

    Raises: ConfigError.
    """
    section = config.teacher
    if section is None:
        return
    check_section(section)
    if section.kind == "cached":
        manifest = require_same_teacher(section, Path(section.store or ""))
        require_servable(config, manifest.targets, manifest.temperature)


def check_filling(config: Config) -> TargetSettings:
    """The settings with which a config's cache is filled. Raises ConfigError for a config that cannot fill one, or
    whose objectives could not read it."""
    section = config.teacher
    if section is None or section.kind != "cached" or section.model is None:
        found = "none" if section is None else f"kind: {section.kind}" + (", no model" if section.model is None else "")
        raise ConfigError(
            f"mmkd cache asks teacher.model and keeps its answers in teacher.store; this config's teacher has {found}. "
            "Write e.g. teacher: {kind: cached, model: runs/teacher/model, store: runs/teacher-cache}."
        )
    check_section(section)
    settings = TargetSettings(**given_settings(section))  # pyright: ignore[reportArgumentType]
    require_servable(config, settings.targets, settings.temperature)
    return settings


def check_section(section: TeacherSection) -> None:
    """Raises ConfigError for an unknown kind, or fields that have no place beside it."""
    if section.kind not in KINDS:
        raise ConfigError(f"teacher.kind {section.kind!r} is not one of {', '.join(KINDS)}.")
    if section.quantize is not None:
        if section.kind == "shared":
            raise ConfigError(
                "teacher.quantize has no place beside kind: shared, whose weights are the student's own and are "
                "trained; a quantised teacher is another copy: kind: live, with teacher.model."
            )
        require_bitsandbytes()
    if section.kind == "cached":
        if section.store is None:
            raise ConfigError("teacher.kind: cached needs teacher.store, the folder that mmkd cache fills.")
        given_settings(section)
        return
    if section.options():
        raise ConfigError(
            f"teacher: unknown fields {', '.join(section.options())}; beside kind: {section.kind} allowed are model "
            "and quantize."
        )
    if section.store is not None:
        raise ConfigError(f"teacher.store has no place beside kind: {section.kind}; write kind: cached to read it.")
    if section.kind == "shared" and section.model is not None:
        raise ConfigError("teacher.model has no place beside kind: shared, whose weights are the student's own.")
    if section.kind == "live" and section.model is None:
        raise ConfigError("teacher.kind: live needs teacher.model, the folder of a composed model.")


def require_servable(config: Config, targets: str, temperature: float) -> None:
    """Refuse objectives that a cache cannot serve: it knows some ids of each distribution, at one temperature.

    Raises: ConfigError.
    """
    for name, sections in _objectives(config):
        for section in sections:
            objective = build(section)
            if not (objective.teacher or objective.own_tokens):
                continue
            if not objective.sparse_teacher:
                kept = "the top k ids of" if targets == "top_k" else "ids drawn from"
                able = [each for each in names() if sparse_capable(each)]
                raise ConfigError(
                    f"{name}: {section.name} needs all of the teacher, and teacher.kind: cached keeps {kept} each "
                    f"distribution. Use {', '.join(able)}, or teacher.kind: live."
                )
            if isinstance(objective, ForwardKL) and objective.temperature != temperature:
                raise ConfigError(
                    f"{name}: {section.name} has temperature {objective.temperature:g}, the teacher's cache "
                    f"{temperature:g}. The mass of the ids that were not kept is known at one temperature only: set "
                    f"temperature: {temperature:g} there, or fill a store with teacher.temperature: "
                    f"{objective.temperature:g}."
                )


def _objectives(config: Config) -> Iterator[tuple[str, list[ObjectiveSection]]]:
    """Where objectives stand, and which; the config's own only where a stage uses them."""
    if not all(stage.objectives for stage in config.stages):
        yield "objectives", config.objectives
    for stage in config.stages:
        if stage.objectives:
            yield f"stage {stage.name}", stage.objectives
