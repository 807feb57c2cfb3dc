"""Whether a teacher can be asked about the student's tokens: both must number the same tokens alike."""

from __future__ import annotations

import hashlib
from typing import Any

from mmkd.config.schema import TeacherSection
from mmkd.errors import ConfigError
from mmkd.models.processing_mmkd import MmkdProcessor


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
        objectives: names of those that read the teacher.

    Raises: ConfigError.
    """
    if section is None or section.kind != "live" or section.model is None or not objectives:
        return
    try:
        other = MmkdProcessor.from_pretrained(section.model).tokenizer
    except (OSError, ValueError) as error:  # a name that the hub does not even take is a ValueError
        raise ConfigError(f"{section.model} is not a folder that mmkd can load ({error}).") from error
    found = difference(tokenizer, other)
    if found:
        raise ConfigError(
            f"teacher {section.model} uses a tokenizer of {_described(other)}, the student one of "
            f"{_described(tokenizer)}: {found}. Objectives that read the teacher ({', '.join(objectives)}) compare "
            "both sides token by token and need one tokenizer: compose both from one family of language models. uld, "
            "which aligns two tokenizers by bytes, is the way for such a pair; it is not yet an objective "
            "(docs/objectives.md)."
        )


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of which id is which token."""
    vocabulary = tokenizer.get_vocab()
    return hashlib.sha256(repr(sorted((i, token) for token, i in vocabulary.items())).encode()).hexdigest()


def _described(tokenizer: Any) -> str:
    return f"{len(tokenizer.get_vocab()):,} ids (sha {vocabulary_digest(tokenizer)[:8]})"
