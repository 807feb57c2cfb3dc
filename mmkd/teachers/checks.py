"""What a config's teacher cannot do, said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmkd.bits import require_bitsandbytes, require_whole_blocks
from mmkd.config.schema import Config, ObjectiveSection, TeacherSection
from mmkd.decoders import text_config
from mmkd.errors import ConfigError
from mmkd.objectives import ForwardKL, OfaLogits, build, names
from mmkd.objectives.registry import sparse_capable
from mmkd.precision import on_cpu
from mmkd.teachers.cached import require_same_teacher
from mmkd.teachers.calibration import require_calibrated
from mmkd.teachers.edited import require_unedited
from mmkd.teachers.identity import data_identity
from mmkd.teachers.pairs import any_reads_pairs
from mmkd.teachers.targets import TargetSettings, given_settings

MOST_SERVED = 20  # top_logprobs of OpenAI's API
KINDS = ("live", "cached", "shared")
NO_GRADIENTS_THROUGH = (
    "teacher.zero3 gathers the teacher's weights for reading only, and ofa_logits sends gradients through its norm and "
    "head; leave zero3 out, or use hidden_states in the place of ofa_logits."
)


def check_teacher(config: Config) -> None:
    """Refuse a teacher section that contradicts itself, or objectives that the teacher cannot serve.

    Raises: ConfigError.
    """
    section = config.teacher
    if section is None:
        return
    check_section(section)
    if section.kind == "live":
        check_bits(config, section)
    if section.zero3 and config.data.cache_features:
        raise ConfigError(
            "data.cache_features compares the towers of both sides weight by weight, and teacher.zero3 cuts the "
            "teacher's up; switch one of them off."
        )
    built = [build(one) for _, sections in _objectives(config) for one in sections]
    if section.zero3 and any(isinstance(one, OfaLogits) for one in built):
        raise ConfigError(NO_GRADIENTS_THROUGH)
    check_towers(config, section)
    if section.kind == "shared":
        check_two_readings(config)
    if section.kind == "cached":
        folder = Path(section.store or "")
        manifest = require_same_teacher(section, folder)
        require_servable(config, manifest.targets, manifest.temperature, bool(manifest.hidden_layers))
        if manifest.data == data_identity(config.data, any_reads_pairs(config)):
            require_unedited(folder, manifest, config.data.mixture, "data.mixture")
        if section.validation:
            require_recalibratable(config, manifest.settings)
            require_calibrated(folder, section.validation, config.data.max_length)


def check_bits(config: Config, section: TeacherSection) -> None:
    """Refuse a teacher in 8 or 4 bits where it is to be loaded and bitsandbytes is not installed, or where a CPU would
    read its 4-bit layers wrongly, as far as its config.json tells. Raises ConfigError."""
    if section.quantize is not None:
        require_bitsandbytes("teacher.quantize")
    if section.quantize == "nf4":
        decoder, option = text_config(section.model), f"teacher.quantize nf4 of {section.model}"
        require_whole_blocks(decoder, on_cpu(config.training.device), option, "Use int8.")


def check_two_readings(config: Config) -> None:
    """Refuse a stage in which student and shared teacher are one model on one input. Raises ConfigError."""
    for stage in config.stages:
        asking = [one.name for one in map(build, stage.objectives or config.objectives) if one.teacher]
        if asking and stage.lora is None and set(stage.read) == {"full"}:
            raise ConfigError(
                f"stage {stage.name}: with teacher.kind: shared, no lora and read: [full] the student is its own "
                f"teacher, and {', '.join(asking)} have no gradient. Read compressed (read: [full, 4], with "
                "student.voco), add lora, or name a teacher of kind: live."
            )


def check_towers(config: Config, section: TeacherSection) -> None:
    """Refuse a comparison of vision towers that has no second tower, or no tower to teach. Raises ConfigError."""
    for stage in config.stages:
        for objective in (build(each) for each in stage.objectives or config.objectives):
            if not objective.teacher_tower:
                continue
            if section.kind != "live":
                lack = "keeps nothing of one" if section.kind == "cached" else "has none of its own"
                raise ConfigError(
                    f"stage {stage.name}: {objective.name} compares the student's vision tower with the teacher's, and "
                    f"teacher.kind {section.kind} {lack}. Use teacher.kind: live."
                )
            if "vision" not in stage.trainable:
                raise ConfigError(
                    f"stage {stage.name}: {objective.name} teaches the student's vision tower, and `trainable` leaves "
                    "that out; add vision to it, or leave the objective to a stage that trains it."
                )


def check_filling(config: Config) -> TargetSettings:
    """The settings with which a config's cache is filled. Raises ConfigError for a config that cannot fill one, or
    whose objectives could not read it."""
    section = config.teacher
    if section is None or section.kind != "cached" or (section.model is None and section.endpoint is None):
        found = "none" if section is None else f"kind: {section.kind}" + (", no model" if section.model is None else "")
        raise ConfigError(
            f"mmkd cache asks teacher.model and keeps its answers in teacher.store; this config's teacher has {found}. "
            "Write e.g. teacher: {kind: cached, model: runs/teacher/model, store: runs/teacher-cache}."
        )
    check_section(section)
    check_bits(config, section)
    settings = TargetSettings(**given_settings(section))  # pyright: ignore[reportArgumentType]
    if section.endpoint is not None:
        require_served(section, settings)
    check_towers(config, section)  # an objective on towers asks nothing of a decoder, so the next line lets it pass
    require_servable(config, settings.targets, settings.temperature, bool(settings.hidden_layers))
    require_recalibratable(config, settings)
    return settings


def require_served(section: TeacherSection, settings: TargetSettings) -> None:
    """Raises ConfigError for options that an endpoint cannot fill a cache with."""
    wrong = {
        "model": section.model is not None and "the endpoint names its own",
        "quantize": section.quantize is not None and "the server decides that",
        "validation": bool(section.validation) and "an endpoint scores its own answers, which are never wrong",
        "targets": settings.targets != "top_k" and "an endpoint gives the likeliest tokens",
        "temperature": settings.temperature != 1 and "an endpoint gives log-probs at temperature 1",
        "hidden_layers": bool(settings.hidden_layers) and "an endpoint shows none",
        "k": settings.k > MOST_SERVED and f"endpoints give the {MOST_SERVED} likeliest at most",
    }
    for name, reason in wrong.items():
        if reason:
            raise ConfigError(f"teacher.{name} does not go with teacher.endpoint: {reason}.")


def require_recalibratable(config: Config, settings: TargetSettings) -> None:
    """Raises ConfigError where teacher.validation cannot give a c, or would give it on training rows."""
    section = config.teacher
    if section is None or not section.validation:
        return
    if settings.targets != "top_k" or settings.temperature != 1:
        raise ConfigError(
            f"teacher.validation recalibrates the top k at temperature 1, and the cache keeps {settings.targets} at "
            f"{settings.temperature:g}; leave validation out, or fill a store with targets: top_k, temperature: 1."
        )
    if settings.k < 2:
        raise ConfigError(
            f"teacher.validation chooses how sharp the likeliest ids stand against each other, and teacher.k is "
            f"{settings.k}; take at least 2 (the authors keep 5)."
        )
    for place, one in enumerate(section.validation):  # the same rows under another name are found when it is filled
        if any(one.model_dump() == other.model_dump() for other in config.data.mixture):
            raise ConfigError(
                f"teacher.validation[{place}] is in data.mixture too: how sure a teacher is of what it was trained on "
                "does not say how sure it should be. Name rows it has not seen, e.g. another split."
            )


def check_section(section: TeacherSection) -> None:
    """Raises ConfigError for an unknown kind, or fields that have no place beside it."""
    if section.kind not in KINDS:
        raise ConfigError(f"teacher.kind {section.kind!r} is not one of {', '.join(KINDS)}.")
    if section.quantize is not None and section.kind == "shared":
        raise ConfigError(
            "teacher.quantize has no place beside kind: shared, whose weights are the student's own and are trained; a "
            "quantised teacher is another copy: kind: live, with teacher.model."
        )
    if section.zero3 and (section.kind != "live" or section.quantize is not None):
        beside = f"kind: {section.kind}" if section.kind != "live" else f"quantize: {section.quantize}"
        raise ConfigError(
            f"teacher.zero3 has no place beside {beside}: it cuts up the weights of a kind: live teacher that are not "
            "quantised. Leave one of the two out."
        )
    if section.kind == "cached":
        if section.store is None:
            raise ConfigError("teacher.kind: cached needs teacher.store, the folder that mmkd cache fills.")
        given_settings(section)
        return
    given = [name for name in ("endpoint", "validation") if getattr(section, name) is not None]
    if given:
        raise ConfigError(f"teacher.{given[0]} has no place beside kind: {section.kind}; it is for kind: cached.")
    if section.options():
        raise ConfigError(
            f"teacher: unknown fields {', '.join(section.options())}; beside kind: {section.kind} allowed are model, "
            "quantize and zero3."
        )
    if section.store is not None:
        raise ConfigError(f"teacher.store has no place beside kind: {section.kind}; write kind: cached to read it.")
    if section.kind == "shared" and section.model is not None:
        raise ConfigError("teacher.model has no place beside kind: shared, whose weights are the student's own.")
    if section.kind == "live" and section.model is None:
        raise ConfigError("teacher.kind: live needs teacher.model, the folder of a composed model.")


def require_servable(config: Config, targets: str, temperature: float, hidden: bool) -> None:
    """Refuse objectives that a cache cannot serve: it knows some ids of each distribution, at one temperature, and
    `hidden` states only where it was asked to keep them.

    Raises: ConfigError.
    """
    for name, sections in _objectives(config):
        for section in sections:
            objective = build(section)
            if not (objective.teacher or objective.own_tokens):
                continue
            if objective.hidden_teacher:
                if not hidden:
                    raise ConfigError(
                        f"{name}: {section.name} reads hidden states, and this cache keeps none. Fill one with "
                        "teacher.hidden_layers, e.g. [5, 11], or use teacher.kind: live."
                    )
            elif not objective.sparse_teacher:
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
