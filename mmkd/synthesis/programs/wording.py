"""Answers that may say the same in other words: the only ones that a judge is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmkd.evaluate.matching import vqa_plain
from mmkd.synthesis.programs.answers import Truth, as_text, is_number, worded
from mmkd.synthesis.programs.counting import NUMBER_WORDS
from mmkd.synthesis.programs.evidence import claims

MOST_LENGTH = 300  # characters of an answer; what is longer is no wording of a label


class Unjudged(Exception):
    """The judge gave no verdict that can be read; the message says why."""


def has_wordings(text: str, choices: Sequence[str]) -> bool:
    """Whether an answer can be said in other words: it is no number, no yes or no, and none of the choices."""
    plain, fixed = vqa_plain(text), ("yes", "no", *choices)
    return bool(plain) and not (
        is_number(plain) or plain in NUMBER_WORDS or worded(plain, fixed) is not None or worded(text, fixed) is not None
    )


def may_say_the_same(answer: Any, truth: Truth, choices: Sequence[str]) -> bool:
    """Whether an answer whose words are not those of the label could mean the same.

    Args:
        truth: a single label can be said in other words; a box cannot, and where several people answered, their
            wordings are there.
        choices: answers that could be guessed.
    """
    text_like = isinstance(answer, str) or (
        isinstance(answer, list) and bool(answer) and all(isinstance(one, str) for one in answer)
    )
    if not (isinstance(truth, str) and text_like):
        return False
    text = as_text(answer)
    if len(text) > MOST_LENGTH or not (has_wordings(text, choices) and has_wordings(truth, choices)):
        return False
    said, meant = claims(text).numbers, claims(truth).numbers
    return not said or not meant or said == meant  # "2 cats" is not "3 cats", whoever says so
