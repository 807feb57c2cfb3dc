"""Rows of several sources as one sequence, those that cannot be used set aside."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

from mmkd.config.schema import SourceSection
from mmkd.data.hub import Stream
from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog, check_text
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError, DataError

AT_ONCE = 256  # rows whose pictures are looked at together


class Chained(Sequence[Record]):
    """Records of sources, one after the other; each is read when asked for."""

    def __init__(self, sources: Sequence[Sequence[Record]]):
        self.sources = sources
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Record:
        place = bisect.bisect_right(self.ends, index)
        return self.sources[place][index - (self.ends[place - 1] if place else 0)]


def open_rows(sections: Sequence[SourceSection]) -> Chained:
    """Raises ConfigError for a source that streams, and what `open_source` raises."""
    sources = []
    for place, section in enumerate(sections):
        source = open_source(section, at=f"data[{place}]")
        if isinstance(source, Stream):
            raise ConfigError(
                f"data[{place}]: {section.source} streams; switch streaming off, rows are read twice here."
            )
        sources.append(source)
    return Chained(sources)


def usable(records: Sequence[Record], log: RejectedLog, source: str, with_pictures: bool = False) -> list[int]:
    """Indices of the rows that can be read, their pictures included; the others are written to the log.

    Args:
        with_pictures: whether a row without one is of no use.

    Raises: DataError once `rejected.too_many` rows were bad, or where none is left.
    """
    good: list[int] = []
    seen = set[str]()  # pictures that several rows share
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding lets other threads run
        for start in range(0, len(records), AT_ONCE):
            for index, name, problem in _looked_at(
                records, range(start, min(start + AT_ONCE, len(records))), seen, pool, with_pictures
            ):
                if problem is None:
                    log.good()
                    good.append(index)
                else:
                    log.reject(source, index, name, problem)
    if not good:
        raise DataError(f"none of the {len(records)} rows can be used; the reasons are in {log.path}.")
    return good


def _looked_at(
    records: Sequence[Record], indices: range, seen: set[str], pool: ThreadPoolExecutor, with_pictures: bool
) -> Iterator[tuple[int, str, BadRow | None]]:
    """(index, id, what is wrong) of each row, in order."""
    rows: list[tuple[int, Record | BadRow]] = []
    pictures: dict[str | int, str | bytes] = {}
    for index in indices:
        try:
            record = records[index]
            _require_text(record)
            if with_pictures and not record.images:
                raise BadRow("it has no picture; what is asked here is asked about one.", "no picture")
        except BadRow as error:
            rows.append((index, error))
            continue
        rows.append((index, record))
        pictures |= {_place(image): image for image in record.images if image not in seen}
    problems = dict(zip(pictures, pool.map(_problem, pictures.values()), strict=True))
    seen.update(place for place, problem in problems.items() if problem is None and isinstance(place, str))
    for index, row in rows:
        if isinstance(row, BadRow):
            yield index, str(index), row
        else:
            wrong = (problems.get(_place(image)) for image in row.images)
            yield index, row.id, next((problem for problem in wrong if problem is not None), None)


def _require_text(record: Record) -> None:
    """Raises BadRow for a text that is none, or that nobody can be sent, see `check_text`."""
    texts: list[Any] = [record.id, record.task, record.source]
    for turn in record.turns:
        texts += [turn.text, turn.rationale or "", turn.rejected or "", *(turn.answers or ()), *(turn.choices or ())]
    for text in texts:
        if not isinstance(text, str):
            raise BadRow(f"it has a {type(text).__name__}, {str(text)[:80]!r}, in the place of a text.", "broken text")
        check_text(text)


def _place(image: str | bytes) -> str | int:
    return image if isinstance(image, str) else id(image)


def _problem(image: str | bytes) -> BadRow | None:
    try:
        open_image(image)
    except BadRow as error:
        return error
    return None
