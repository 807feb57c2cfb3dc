"""The questions of records, each with what is known to be its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mmkd.data.records import Record
from mmkd.data.rejected import BadRow
from mmkd.synthesis.programs.answers import Truth
from mmkd.synthesis.programs.parts import is_box


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: the record's, and the number of the question in it; row: index of the record.
        label: the record's answer, None where it gives none.
        task: of the record; reports count by it.
    """

    id: str
    row: int
    question: str
    label: str | None
    task: str

    @property
    def truth(self) -> Truth | None:
        """The label as what programs' answers are compared with: a box where it is written as one."""
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
        return record


def items_of(records: Sequence[Record], rows: Sequence[int]) -> list[Item]:
    """Every question of the records at `rows`, in their order. A user turn is a question of its own."""
    found = []
    for row in rows:
        record = records[row]
        for place, turn in enumerate(record.turns):
            if turn.role != "user" or not turn.text.strip():
                continue
            after = record.turns[place + 1] if place + 1 < len(record.turns) else None
            label = after.text.strip() if after is not None and after.role == "assistant" else None
            found.append(Item(f"{record.id}#{place}", row, turn.text.strip(), label or None, record.task))
    return found
