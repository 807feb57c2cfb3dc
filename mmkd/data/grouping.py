"""Several questions on one image as the turns of one record: the image is then read once for all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmkd.data.records import Provenance, Record
from mmkd.data.rejected import BadRow, check_turns
from mmkd.errors import ConfigError


def grouped(records: Sequence[Record], turns: int | None, seed: int = 0) -> Sequence[Record]:
    """Consecutive records on the same single image become multi-turn records of at most `turns` questions.

    The questions of an image are put into a seeded order first. Records without an image, with several, or that cannot
    be used stay as they are. With `turns` None everything does.
    """
    if turns is None:
        return records
    if turns < 1:
        raise ConfigError(f"turns is {turns}; a record holds at least 1 question.")
    return GroupedRecords(records, turns, seed)


class GroupedRecords(Sequence[Record]):
    """See `grouped`. Reads every record once to find the groups, then only those asked for."""

    def __init__(self, records: Sequence[Record], turns: int, seed: int):
        self.records = records
        self.groups: list[list[int]] = []
        run: list[int] = []
        last: object = None
        for index in range(len(records)):
            mark = _mark(records, index)
            if run and (mark is None or mark != last):
                self._close(run, turns, seed)
                run = []
            run.append(index)
            last = mark
        if run:
            self._close(run, turns, seed)

    def _close(self, run: list[int], turns: int, seed: int) -> None:
        first, run = run[0], list(run)
        random.Random(f"{seed}/{first}").shuffle(run)
        self.groups += [run[start : start + turns] for start in range(0, len(run), turns)]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Record:
        return _joined([self.records[member] for member in self.groups[index]])


def _mark(records: Sequence[Record], index: int) -> object:
    """Equal marks may be joined: same source, same single image, same system turn."""
    try:
        record = records[index]
        check_turns(record.turns)  # one that is refused later would take the others of its group with it
    except BadRow:
        return None
    if len(record.images) != 1:
        return None
    system = record.turns[0].text if record.turns[0].role == "system" else None
    return record.source, record.images[0], system


def _joined(records: list[Record]) -> Record:
    first = records[0]
    if len(records) == 1:
        return first
    turns = list(first.turns)
    for record in records[1:]:
        turns += [turn for turn in record.turns if turn.role != "system"]
    same_task = all(record.task == first.task for record in records)
    same_origin = all(record.provenance == first.provenance for record in records)
    return Record(
        id=f"{first.id}+{len(records) - 1}",
        turns=turns,
        images=first.images,
        task=first.task if same_task else "mixed",
        source=first.source,
        provenance=first.provenance if same_origin else Provenance(license=first.provenance.license),
    )
