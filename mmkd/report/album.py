"""The pictures inside a page that shows many rows: each once, few enough that a browser opens the page quickly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmkd.data.images import open_image
from mmkd.data.record_files import JsonLines
from mmkd.data.records import Record
from mmkd.errors import MmkdError
from mmkd.report.folder import Folder
from mmkd.report.pictures import data_uri

MOST_BYTES = 24_000_000  # of all data URIs: some 2,500 photographs

Source = str | bytes  # path of an image file, or its bytes


@dataclass(frozen=True)
class Pictured:
    """Attributes: place: in `Album.uris`; width, height: of the whole picture, in pixels."""

    place: int
    width: int
    height: int


class Album:
    """Attributes: uris: the pictures as data URIs, made smaller."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._bytes = 0
        self._known: dict[str, Pictured | None] = {}
        self._left_out = self._broken = 0

    def add(self, source: Source | None) -> Pictured | None:
        """None for a picture that there is no room for, or that cannot be read."""
        if source is None:
            return None
        key = os.path.abspath(source) if isinstance(source, str) else hashlib.sha256(source).hexdigest()
        if key not in self._known:
            self._known[key] = self._added(source)
        return self._known[key]

    @property
    def full(self) -> bool:
        return self._bytes >= MOST_BYTES

    def _added(self, source: Source) -> Pictured | None:
        if self.full:
            self._left_out += 1
            return None
        try:
            image = open_image(source)
        except (MmkdError, OSError, ValueError):
            self._broken += 1
            return None
        self.uris.append(data_uri(image))
        self._bytes += len(self.uris[-1])
        return Pictured(len(self.uris) - 1, image.width, image.height)

    def note(self, folder: Folder) -> None:
        """Say what is not shown."""
        if self._left_out:
            folder.notes.append(
                f"pictures: {self._left_out:,} are left out; the page holds {len(self.uris):,}, no more than "
                f"{MOST_BYTES / 1e6:.0f} MB of them."
            )
        if self._broken:
            folder.notes.append(f"pictures: {self._broken:,} cannot be read.")


class Pictures:
    """The pictures of records in a JSONL file, by record id; read when asked for."""

    def __init__(self, file: Path):
        """Raises OSError where the file is not there."""
        self._rows = JsonLines(file)
        self._places = {record.id: place for place, record in self._readable()}

    def record(self, name: str) -> Record | None:
        return self._rows[self._places[name]] if name in self._places else None

    def _readable(self) -> Iterator[tuple[int, Record]]:
        for place in range(len(self._rows)):
            try:
                yield place, self._rows[place]
            except (MmkdError, RecursionError):
                continue


def first_image(record: Record | None) -> Source | None:
    return record.images[0] if record is not None and record.images else None
