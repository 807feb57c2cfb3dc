"""Answers of programs as text, and how right they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mmkd.evaluate import matching
from mmkd.synthesis.programs.parts import iou

Truth = str | Sequence[str] | tuple[int, int, int, int]
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def as_text(answer: Any) -> str:
    """True -> yes, 3.0 -> 3, ["a", 2] -> "a, 2"."""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, float):
        return f"{round(answer, 3):g}" if abs(answer) < 1e6 else f"{answer:.0f}"
    if isinstance(answer, list):
        return ", ".join(map(as_text, answer))
    return str(answer)


def score(answer: Any, truth: Truth) -> float:
    """How right a program's answer is, 0 to 1.

    Against a box: intersection over union. Against several human answers: VQA soft accuracy. Against a number: equal
    or not as numbers. Else the words have to be the same.
    """
    if isinstance(truth, str):
        text = as_text(answer)
        number = _NUMBER.fullmatch(truth.strip()) and not isinstance(answer, bool)
        return matching.numeric(text, truth) if number else matching.exact(text, truth)
    if _is_box(truth):
        return iou(tuple(answer), tuple(truth)) if _is_box(answer) else 0.0  # type: ignore[arg-type]  # both are boxes
    return matching.vqa_soft(as_text(answer), [str(one) for one in truth])


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value)
    )
