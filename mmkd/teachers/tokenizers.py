"""Whether a teacher can be asked about the student's tokens, which takes one numbering, or reads tokens of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mmkd.config.schema import TeacherSection
from mmkd.data.teacher_side import TeacherSide
from mmkd.errors import ConfigError
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.objectives import Objective


def vocabulary_size(tokenizer: Any) -> int:
    """Ids below this are real tokens; rows of a head from here on are padding."""
    return 1 + max(tokenizer.get_vocab().values())


def difference(student: Any, teacher: Any) -> str | None:
    """Where two tokenizers part, or None where one may read the other's ids.

    An id that both have must be one token, and an id that one of them lacks an added token (`<image>`, say). Merges and
    normalisation do not count: whatever cut the text, its ids mean the same.
    """
    ours, theirs = ({i: token for token, i in side.get_vocab().items()} for side in (student, teacher))
    for i in sorted(ours.keys() & theirs.keys()):
        if ours[i] != theirs[i]:
            return f"id {i} is {theirs[i]!r} there and {ours[i]!r} here"
    for there, here, side, other in ((theirs, ours, teacher, "student"), (ours, theirs, student, "teacher")):
        alone = there.keys() - here.keys() - set(side.get_added_vocab().values())
        if alone:
            return f"the {other} lacks id {min(alone)}, {there[min(alone)]!r}"
    return None


def require_one_tokenizer(section: TeacherSection | None, tokenizer: Any, objectives: list[str]) -> None:
    """Refuse a live teacher whose ids mean other tokens than the student's, before its weights are loaded.

    Args:
        tokenizer: the student's.
        objectives: names of those that read the teacher on the student's tokens.

    Raises: ConfigError.
    """
    if section is None or section.kind != "live" or section.model is None or not objectives:
        return
    other = _processor(section.model).tokenizer
    found = difference(tokenizer, other)
    if found:
        raise ConfigError(
            f"teacher {section.model} uses a tokenizer of {_described(other)}, the student one of "
            f"{_described(tokenizer)}: {found}. Objectives that read the teacher ({', '.join(objectives)}) compare "
            "both sides token by token and need one tokenizer. Use uld in their place, which aligns two tokenizers by "
            "bytes, or compose both from one family of language models (docs/objectives.md)."
        )


def teacher_side(
    section: TeacherSection | None, student: MmkdProcessor, objectives: Sequence[Objective]
) -> TeacherSide | None:
    """How the live teacher of a config reads records for these objectives; None where it is not asked, or sees and
    reads as the student does. Another kind of teacher has no reading of its own; `Teacher.check` says so.

    Raises: ConfigError for a folder without a processor, or a tokenizer that cannot be aligned by bytes.
    """
    own_tokens = any(objective.own_tokens for objective in objectives)
    asked = any(objective.asks_teacher for objective in objectives)
    if section is None or section.kind != "live" or section.model is None or not asked:
        return None
    side = TeacherSide(student, _processor(section.model), own_tokens)
    return side if own_tokens or side.own_images else None


def require_one_reading(stage: str, objectives: Sequence[Objective]) -> None:
    """Refuse objectives that read the teacher on its own tokens beside others that read it on the student's.

    Raises: ConfigError.
    """
    own = [objective.name for objective in objectives if objective.own_tokens]
    others = [objective.name for objective in objectives if objective.teacher]
    if own and others:
        raise ConfigError(
            f"stage {stage}: {', '.join(own)} has the teacher read its own tokens, {', '.join(others)} the student's; "
            "a stage has one reading. Keep one kind; cross_entropy goes with both."
        )


def _processor(model: str) -> MmkdProcessor:
    try:
        return MmkdProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:  # a name that the hub does not even take is a ValueError
        raise ConfigError(f"{model} is not a folder that mmkd can load ({error}).") from error


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of which id is which token."""
    vocabulary = tokenizer.get_vocab()
    return hashlib.sha256(repr(sorted((i, token) for token, i in vocabulary.items())).encode()).hexdigest()


def _described(tokenizer: Any) -> str:
    return f"{len(tokenizer.get_vocab()):,} ids (sha {vocabulary_digest(tokenizer)[:8]})"
