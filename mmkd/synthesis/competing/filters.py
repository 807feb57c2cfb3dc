"""What a new question must be, by its words alone, whatever the language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

FEWEST_LETTERS = 10  # in bytes of UTF-8: "how many cats" has 11, four Chinese characters have 12
MOST_CHARACTERS = 1000
OPENING = "\"'“‘«¿¡([「『"
# A question that speaks of the task in the place of the picture.
_ABOUT_THE_TASK = re.compile(r"\b(instructions?|the (given|original|previous) question|prompt)\b", re.IGNORECASE)
_MARKS = re.compile(r"<\s*/?\s*(image|img)\b|<\|", re.IGNORECASE)


def badly_formed(question: str) -> str:
    """Why a text is no question to ask, or nothing."""
    letters = sum(len(c.encode()) for c in question if unicodedata.category(c)[0] in "LM")
    if letters < FEWEST_LETTERS:
        return f"too short: {question[:40]!r}"
    if len(question) > MOST_CHARACTERS:
        return f"{len(question):,} characters; at most {MOST_CHARACTERS:,}"
    if not (question[0].isalnum() or question[0] in OPENING):
        return f"it starts with {question[0]!r}"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") and c not in "\n\t\u200c\u200d" for c in question):
        return "it holds control characters"
    if _MARKS.search(question):
        return "it holds marks of a chat template"
    if found := _ABOUT_THE_TASK.search(question):
        return f"it speaks of {found[0]!r}, not of the picture"
    return ""


def words(text: str) -> list[str]:
    """Lower-case words and numbers; a script without spaces gives its characters."""
    return re.findall(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+", text.lower())


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words (ROUGE-L, Lin 2004), 0 to 1."""
    if not one or not other:
        return 0.0
    last = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, against in enumerate(other):
            row.append(last[place] + 1 if word == against else max(last[place + 1], row[place]))
        last = row
    return 2 * last[-1] / (len(one) + len(other))


class Known:
    """The questions on each picture. Only those on one picture are compared, so that a draft costs little."""

    def __init__(self, similarity: float):
        self.similarity = similarity
        self._asked: dict[Sequence[str], list[str]] = {}

    def add(self, images: Sequence[str], question: str) -> None:
        self._asked.setdefault(images, []).append(question)

    def near(self, images: Sequence[str], question: str) -> str:
        """The question on these pictures that this one says again, or nothing."""
        new = words(question)
        found = (old for old in self._asked.get(images, ()) if self._again(new, words(old)))
        return next(found, "")

    def questions(self, images: Sequence[str]) -> Iterable[str]:
        return self._asked.get(images, ())

    def _again(self, new: list[str], old: list[str]) -> bool:
        # The score is at most 2 min / (n + m): most pairs are told apart by their lengths.
        if 2 * min(len(new), len(old)) < self.similarity * (len(new) + len(old)):
            return False
        return rouge_l(new, old) >= self.similarity
