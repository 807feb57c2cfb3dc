"""What a run's config asks that cannot be, said before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmkd.compose import compose_processor, compose_tokenizer
from mmkd.config.schema import Config
from mmkd.data.sources import check_source
from mmkd.decoders import attention_shape, beside_product, kept_layers, student_layers, text_config
from mmkd.errors import ConfigError
from mmkd.objectives import Needs, Objective, OfaLogits, TokenLoss, build
from mmkd.teachers.cached import require_kept, require_same_text
from mmkd.teachers.live import SharedTeacher
from mmkd.teachers.logit_store import read_manifest
from mmkd.teachers.tokenizers import require_one_reading, require_one_tokenizer

MASK_TAKING = ("eager", "sdpa")


def check_run(config: Config) -> None:
    """Refuse objectives without their teacher, token counts that the student does not have, attention that would drop
    a mask, tokenizers that do not meet, trackers and files that are not there.

    Raises: ConfigError.
    """
    check_trackers(config.training.trackers)
    check_objectives(config)
    check_sides(config)
    check_reading(config)
    check_mixture(config)
    check_tokenizers(config)


def check_trackers(trackers: list[Any]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    for name in trackers:
        if find_spec(name) is None:
            raise ConfigError(f"training.trackers names {name}, which is not installed: pip install {name}")


def check_objectives(config: Config) -> None:
    """Raises ConfigError for an unknown objective or option, or one whose teacher is not there or cannot serve it."""
    for stage in config.stages:
        built = [build(section) for section in stage.objectives or config.objectives]
        if not built:
            raise ConfigError(f"stage {stage.name} has no objective, and so nothing to learn; name one in objectives.")
        require_one_of_each(stage.name, built)
        asking = [objective.name for objective in built if objective.asks_teacher]
        if asking and config.teacher is None:
            raise ConfigError(
                f"stage {stage.name}: objectives {', '.join(asking)} need a teacher, and the config has none. Add e.g. "
                "teacher: {kind: live, model: runs/teacher/model}."
            )
        if config.teacher is not None and config.teacher.kind == "shared":
            for objective in built:
                own_head = isinstance(objective, OfaLogits)
                SharedTeacher().check(Needs(objective.teacher, own_tokens=objective.own_tokens, teacher_head=own_head))


def require_one_of_each(stage: str, objectives: list[Objective]) -> None:
    """Refuse a loss named twice, whose figures would be one, and two divergences over the vocabulary, which pull the
    same logits towards two targets. Raises ConfigError."""
    named = [objective.name for objective in objectives]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"stage {stage}: objectives name {twice} twice; name it once, and give it more weight.")
    divergences = [one.name for one in objectives if isinstance(one, TokenLoss) and one.teacher]
    if len(divergences) > 1:
        raise ConfigError(
            f"stage {stage}: {' and '.join(divergences)} each want the student's distribution at a token another way; "
            "a stage has one such loss. Keep one (generalised_js stands between the two KLs), or give each a stage."
        )


def check_sides(config: Config) -> None:
    """Refuse layers that a decoder does not have, or whose attention cannot be compared, of every stage, as far as
    config.json, `keep_layers` and a store's manifest tell before anything is loaded. Raises ConfigError."""
    layers = student_layers(config.student)
    section, ours = config.teacher, text_config(config.student.init)
    manifest = None
    if section is not None and section.kind == "cached" and section.store is not None:
        manifest = read_manifest(Path(section.store))
    theirs = ours if section is not None and section.kind == "shared" else text_config(section and section.model)
    if section is None or section.kind == "shared":
        teacher_layers = layers
    else:
        teacher_layers = manifest.layers if manifest is not None else theirs and theirs.num_hidden_layers
    shapes = [attention_shape(side) for side in (ours, theirs)]
    for stage in config.stages:
        for objective in (build(each) for each in stage.objectives or config.objectives):
            if layers is not None and teacher_layers is not None:
                needs = objective.needs(layers, teacher_layers)
                kept = kept_layers(config.student.keep_layers, ours.num_hidden_layers) if ours is not None else []
                seen = [kept[layer] for layer in needs.student_attention] if kept else []
                require_whole_view(objective, ours, seen, config.data.max_length, "student")
                require_whole_view(objective, theirs, needs.teacher_attention, config.data.max_length, "teacher")
                if manifest is not None:
                    require_kept(manifest, Path(str(section and section.store)), needs)
            if shapes[0] is not None and shapes[1] is not None:
                objective.check_attention(*shapes)
            if isinstance(objective, TokenLoss) and objective.kernel != "chunked":
                require_product(objective, ours, "student")
                require_product(objective, theirs if objective.teacher else None, "teacher")


def require_whole_view(objective: Objective, decoder: Any, layers: Sequence[int], longest: int, side: str) -> None:
    """Raises ConfigError for layers of a decoder whose attention is compared and that do not see the longest row whole:
    image and text cannot be told apart there. `decoder` is its config, None where only capturing tells."""
    window = getattr(decoder, "sliding_window", None)
    kinds = getattr(decoder, "layer_types", None) or ["sliding_attention"] * (max(layers, default=0) + 1)
    sliding = [layer for layer in layers if kinds[layer] == "sliding_attention"]
    if window and window < longest and sliding:
        raise ConfigError(
            f"{objective.name} compares attention in the {side}'s layers {', '.join(map(str, sliding))}, which see the "
            f"last {window} tokens, and data.max_length is {longest}. Lower that to {window}, or name layers with full "
            "attention."
        )


def require_product(objective: TokenLoss, decoder: Any, side: str) -> None:
    """Raises ConfigError for a kernel that takes a head's weight, and a head that is more than its product; `decoder`
    is its config, None where only the first step tells."""
    more = None if decoder is None else beside_product(decoder)
    if more is not None:
        raise ConfigError(
            f"{objective.name}: kernel {objective.kernel} takes a head that is a product and nothing else, and the "
            f"{side}'s has {more}. Use kernel: chunked."
        )


def check_tokenizers(config: Config) -> None:
    """Raises ConfigError where a teacher is to be read on tokens that are not its own, or on two kinds in one stage, or
    was asked about text of another tokenizer or template (of a student of parts, loading tells)."""
    reading = set()
    for stage in config.stages:
        built = [build(section) for section in stage.objectives or config.objectives]
        require_one_reading(stage.name, built)
        reading |= {objective.name for objective in built if objective.teacher}
    if reading and config.teacher is not None and config.teacher.kind == "live":
        require_one_tokenizer(config.teacher, compose_tokenizer(config.student), sorted(reading))
    if config.teacher is not None and config.teacher.kind == "cached" and config.student.init:
        require_same_text(config.teacher, compose_processor(config.student))


def check_reading(config: Config) -> None:
    """Raises ConfigError for token counts above the student's K, or a mask that its attention would not take."""
    voco = _voco(config)
    if voco is None:
        return
    for stage in config.stages:
        most = max((count for count in stage.read if count != "full"), default=0)
        if most > voco.get("tokens", 0):
            has = f"1 to {voco['tokens']}, or full" if voco else "full only, as it has no compression tokens"
            raise ConfigError(
                f"stage {stage.name}: read names {most}, and the student can be read with {has}. Change read, or "
                "student.voco.tokens."
            )
    needing = [
        name for name, on in (("data.packing", config.data.packing), ("voco.mass_bias", voco.get("mass_bias"))) if on
    ]
    if needing and config.student.attention not in MASK_TAKING:
        raise ConfigError(
            f"student.attention {config.student.attention} takes no mask of ours, which {' and '.join(needing)} needs; "
            f"use attention: sdpa (or eager), or switch {' and '.join(needing)} off."
        )


def _voco(config: Config) -> dict[str, Any] | None:
    """The student's compression settings, {} for a student that has none, None where only its weights' owner knows."""
    if config.student.voco is not None:
        return config.student.voco.model_dump()
    if config.student.init is None:
        return {}
    try:
        return json.loads((Path(config.student.init) / "config.json").read_text()).get("voco") or {}
    except (OSError, ValueError):  # a hub id; or no folder of a model, which loading says better
        return None


def check_mixture(config: Config) -> None:
    """Raises ConfigError for an unknown source or option of the mixture, or a file or folder that is not there."""
    for place, section in enumerate(config.data.mixture):
        check_source(section, at=f"data.mixture[{place}]", config=config)
        options = section.options()
        named = ["images"] if section.source == "datasets" else ["path", "images"]  # a data set's path may be a hub id
        for key in named:
            path = options.get(key)
            if isinstance(path, str) and not Path(path).exists():
                raise ConfigError(
                    f"data.mixture[{place}].{key} is {path}, which is not there. Paths are relative to where you run."
                )
