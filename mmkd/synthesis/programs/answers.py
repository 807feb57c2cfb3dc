"""Answers of programs as text, and how right they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmkd.evaluate import matching
from mmkd.synthesis.programs.parts import iou, is_box

Truth = str | Sequence[str] | tuple[int, int, int, int]
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_LETTERED = re.compile(r"\(?([A-Za-z])(?:[).:]\s*(.*))?")  # B, (B), B. a dog


def as_text(answer: Any) -> str:
    """True -> yes, 3.0 -> 3, ["a", 2] -> "a, 2"."""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, float):
        text = f"{answer:.3f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    if isinstance(answer, list):
        return ", ".join(map(as_text, answer))
    return str(answer)


def score(answer: Any, truth: Truth, offered: Sequence[str] = ()) -> float:
    """How right a program's answer is, 0 to 1.

    Against a box: intersection over union. Against several human answers: VQA soft accuracy. Against a number: equal
    or not as numbers. Else the words have to be the same. Where choices are `offered`, both sides stand for the choice
    that they name.
    """
    if isinstance(truth, str):
        return same(named(answer, offered) if offered else answer, named(truth, offered))
    if is_box(truth):
        return iou(tuple(answer), tuple(truth)) if is_box(answer) else 0.0  # type: ignore[arg-type]  # both are boxes
    return matching.vqa_soft(named(answer, offered), [named(one, offered) for one in truth])


def same(answer: Any, truth: str) -> float:
    """1.0 where both are one number, or the same words; else 0.0."""
    text = as_text(answer)
    number = is_number(truth) and not isinstance(answer, bool)
    return matching.numeric(text, truth) if number else matching.exact(text, truth)


def is_number(text: str) -> bool:
    """Whether it is a number in digits."""
    return _NUMBER.fullmatch(text.strip()) is not None


def named(answer: Any, offered: Sequence[str]) -> str:
    """The choice that an answer names by its words or its letter (A is the first); its own text where it names none."""
    text = as_text(answer)
    choice = worded(answer, offered)
    if choice is None and (found := _LETTERED.fullmatch(text.strip())):
        place = ord(found[1].lower()) - ord("a")
        if place < len(offered) and (not found[2] or worded(found[2], offered) == offered[place]):
            choice = offered[place]
    return text if choice is None else choice


def worded(answer: Any, choices: Sequence[str]) -> str | None:
    """The one choice that is the answer in words or as a number, None where none is."""
    text = as_text(answer).strip().lower()
    by_words = {choice.strip().lower(): choice for choice in choices}
    if text in by_words:
        return by_words[text]
    found = [choice for choice in by_words.values() if same(answer, choice)]
    return found[0] if len(found) == 1 else None
