"""The questions of records, each with what is known to be its answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.synthesis.programs.answers import Truth, named
from mmkd.synthesis.programs.parts import is_box


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: the record's, and the number of the question in it; row: index of the record.
        label: the record's answer, None where it gives none.
        task: of the record; reports count by it.
        answers: what several people answered; choices: the answers on offer. Empty where the record names none.
    """

    id: str
    row: int
    question: str
    label: str | None
    task: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The question as a writer of programs is asked it: with its choices, where its own words lack one of them."""
        if all(re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", self.question, re.I) for choice in self.choices):
            return self.question
        letters = zip(ascii_uppercase, self.choices, strict=False)
        return f"{self.question} Choices: " + ", ".join(f"({letter}) {choice}" for letter, choice in letters)

    @property
    def truth(self) -> Truth | None:
        """What programs' answers are compared with: human answers, a box where the label is written as one, else the
        label."""
        if self.answers:
            return self.answers
        if self.label is not None and self.label.startswith("["):
            try:
                box = json.loads(self.label)
            except ValueError:
                return self.label
            return tuple(box) if is_box(box) else self.label  # type: ignore[return-value]  # four numbers
        return self.label


class OneImage(Sequence[Record]):
    """Records on which programs can run; reading another raises BadRow."""

    def __init__(self, records: Sequence[Record]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        record = self.records[index]
        if len(record.images) != 1:
            raise BadRow(f"{len(record.images)} images; a program looks at exactly one.", "not one image")
        if not any(turn.role == "user" and turn.text.strip() for turn in record.turns):
            raise BadRow("it asks no question.", "no question")
        for question, label in _asked(record):
            _check(question.choices or [], label)
        return record


def items_of(records: Sequence[Record], rows: Sequence[int]) -> list[Item]:
    """Every question of the records at `rows`, in their order. A user turn is a question of its own."""
    found = []
    for row in rows:
        record = records[row]
        places = [place for place, turn in enumerate(record.turns) if _asks(turn)]
        for place, (turn, label) in zip(places, _asked(record), strict=True):
            name, answers = f"{record.id}#{place}", () if label is None else _said(label)
            first = label.text.strip() if label is not None else ""
            text = first or (Counter(answers).most_common(1)[0][0] if answers else None)
            choices = tuple(turn.choices or ())
            found.append(Item(name, row, turn.text.strip(), text, record.task, answers, choices))
    return found


def _asks(turn: Turn) -> bool:
    return turn.role == "user" and bool(turn.text.strip())


def _asked(record: Record) -> Iterator[tuple[Turn, Turn | None]]:
    """Each question, and the turn that answers it."""
    for turn, after in zip(record.turns, [*record.turns[1:], None], strict=True):
        if _asks(turn):
            yield turn, after if after is not None and after.role == "assistant" else None


def _said(label: Turn) -> tuple[str, ...]:
    return tuple(answer for answer in label.answers or () if answer.strip())


def _check(choices: Sequence[str], label: Turn | None) -> None:
    """Raises BadRow for choices that are none, or a label that is none of them."""
    if not choices:
        return
    words = {choice.strip().lower() for choice in choices}
    if len(choices) < 2 or len(words) < len(choices) or "" in words or len(choices) > len(ascii_uppercase):
        raise BadRow(f"its choices are {list(choices)}; allowed: 2 to 26 different texts.", "choices")
    if label is not None and label.text.strip() and named(label.text, choices) not in choices:
        raise BadRow(f"its answer {label.text[:80]!r} is none of its choices {list(choices)}.", "choices")
