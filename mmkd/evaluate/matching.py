"""When an answer counts as right."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_VQA_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VQA_WORDS = {word: str(number) for number, word in enumerate(_VQA_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def exact(answer: str, truth: str) -> float:
    """1.0 if both are the same but for case, punctuation and outer spaces, else 0.0."""
    return float(_plain(answer) == _plain(truth))


def numeric(answer: str, truth: str, tolerance: float = 1e-6) -> float:
    """1.0 if both are numbers that differ by no more than a relative `tolerance`, else 0.0."""
    try:
        one, other = float(answer), float(truth)
    except ValueError:
        return 0.0
    return float(math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance))


def vqa_soft(answer: str, truths: Sequence[str]) -> float:
    """Soft accuracy over human answers (VQA, Antol et al. 2015): the mean, over leaving out one human at a time, of
    min(1, those of the others who gave this answer / 3). Answers are compared as `vqa_plain`.

    The measure is made for ten humans. Of three or two, all of the others have to give the answer for 1; one alone is
    compared with.
    """
    said = vqa_plain(answer)
    same = [float(vqa_plain(truth) == said) for truth in truths]
    if len(same) < 2:
        return sum(same)
    enough = min(3, len(same) - 1)
    return sum(min(1.0, (sum(same) - one) / enough) for one in same) / len(same)


def vqa_plain(text: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, numbers up to ten in digits (none is 0), no articles, no
    commas inside numbers and no full stops but in them; other punctuation becomes a space, or nothing where the text
    has it next to a space.

    Two differences: apostrophes do not count, where VQA puts those of a list of contractions back; and it is done also
    where all humans gave the same answer.
    """
    text = " ".join(text.split())
    found = text
    for mark in _VQA_MARKS:
        gone = f"{mark} " in text or f" {mark}" in text or _THOUSANDS.search(text)
        found = found.replace(mark, "" if gone else " ")
    words = _FULL_STOP.sub("", found).replace("'", "").lower().split()
    return " ".join(_VQA_WORDS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    """Of punctuation alone nothing would be left, and "<" would be ">"."""
    return " ".join(text.lower().translate(_PUNCTUATION).split()) or text.strip()
