"""Rows of several sources as one sequence, those that cannot be used set aside."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate

from mmkd.config.schema import SourceSection
from mmkd.data.hub import Stream
from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError, DataError


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


def usable(records: Sequence[Record], log: RejectedLog, source: str) -> list[int]:
    """Indices of the rows that can be read, their pictures included; the others are written to the log.

    Raises: DataError once more than 10 % of at least 50 rows were bad, or where none is left.
    """
    good, seen = [], set[str]()
    for index in range(len(records)):
        name = str(index)
        try:
            record = records[index]
            name = record.id
            for image in record.images:
                if isinstance(image, bytes) or image not in seen:
                    open_image(image)
                    seen.update([image] if isinstance(image, str) else [])
        except BadRow as error:
            log.reject(source, index, name, error)
            continue
        log.good()
        good.append(index)
    if not good:
        raise DataError(f"none of the {len(records)} rows can be used; the reasons are in {log.path}.")
    return good
