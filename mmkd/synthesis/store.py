"""Every answer that came, kept for good: a journal of lines, and an index over it that can always be made again."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from mmkd.errors import DataError
from mmkd.synthesis.requests import ScoredToken, Status, Usage
from mmkd.synthesis.store_index import Index
from mmkd.whole_files import append_whole, whole_lines

SYNC_SECONDS = 1.0  # between flushes to the disk; a killed process loses nothing, a power cut at most this


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        key: of the request, see `request_key`.
        request: id, prompt, license, and its content (turns, hashes of the images, sampling, schema).
        license: of what the model writes.
        text: the reply, also where it was no answer.
        time: seconds since 1970.
        tokens: of the text, as `ScoredToken`, where they were asked for.
    """

    key: str
    status: Status
    model: str
    request: dict[str, Any]
    text: str = ""
    finish: str = ""
    kind: str = ""
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    license: str | None = None
    response_id: str | None = None
    served_by: str | None = None
    time: float = field(default_factory=time.time)
    tokens: tuple[ScoredToken, ...] | None = None

    def line(self) -> bytes:
        row = asdict(replace(self, tokens=None))
        row["tokens"] = None if self.tokens is None else [token.model_dump() for token in self.tokens]
        return (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def read(cls, line: bytes) -> Entry:
        """Raises ValueError, KeyError or TypeError where the line is no entry."""
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("it is no object")
        tokens = row.get("tokens")
        scored = None if tokens is None else tuple(ScoredToken.model_validate(token) for token in tokens)
        return cls(**{**row, "status": Status(row["status"]), "usage": Usage(**row["usage"]), "tokens": scored})


class Store:
    """`journal.jsonl` and `index.sqlite` in a folder, which one process writes at a time.

    The journal is the truth. A line is appended, in one write, before its answer is handed on, so whatever the process
    had from a model is there after a kill at any moment; what a kill tore off the last line is cut away when the store
    is opened. A line that cannot be read, or is not what the index says, is passed over and counted in `broken`, and
    told on stderr when the store is closed. The index is brought up to date
    from the journal, or made anew where it is missing or wrong. Nothing grows with the number of entries but files.

    Raises: DataError where another process writes the folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = FileLock(self.folder / "writer.lock")
        try:
            self._writer.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"{self.folder} is being written by another process, or by another part of this one; wait for it, or "
                "give another folder."
            ) from None
        self.journal = self.folder / "journal.jsonl"
        self._file = os.open(self.journal, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.RLock()
        self._size, self._synced = whole_lines(self._file), time.monotonic()
        self._passed_over: set[int] = set()  # places of lines that cannot be read
        self._users = 1
        self._behind = False  # whether the index lacks lines of the journal, because the disk took no more
        try:
            with self._indexing():
                self._index = Index(self.folder / "index.sqlite")
                self._catch_up()
        except BaseException:
            os.close(self._file)
            self._writer.release()
            raise

    def again(self) -> Store:
        """Itself, for one more who closes it; it is closed when all have done so."""
        with self._lock:
            self._users += 1
        return self

    def append(self, entry: Entry) -> None:
        """Raises DataError where the disk takes no more. The journal is then as it was before, or has the entry and the
        index has not; which is mended by the next entry, or when the store is opened."""
        line = entry.line()
        with self._lock:
            place = self._size
            self._size = append_whole(self._file, line, place, self.journal)
            with self._indexing():
                if self._behind:
                    self._catch_up()
                else:
                    self._index.add(place, len(line), entry)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def final(self, key: str) -> Entry | None:
        """The entry that ended a request, done or rejected."""
        return next((entry for entry in self.entries(key) if entry.status.final), None)

    def last(self, key: str) -> Entry | None:
        """The newest entry of a request, final or not."""
        return next(reversed(list(self.entries(key))), None)

    def entries(self, key: str | None = None, status: Status | None = None) -> Iterator[Entry]:
        """Entries in the order of the journal: those of a key, of a status, or all."""
        after = -1
        while True:
            with self._lock:  # a page at a time, so that a long reading does not keep writers out
                page = self._index.places(key, status, after)
            for place, length, named in page:
                after = place
                try:
                    entry = self._read(place, length)
                except (ValueError, KeyError, TypeError):
                    entry = None
                if entry is not None and entry.key == named:
                    yield entry
                else:
                    self._passed_over.add(place)
            if not page:
                return

    def owner(self, response_id: str) -> str | None:
        """The key whose reply came first under this name."""
        with self._lock:
            return self._index.owner(response_id)

    def spent(self, model: str | None = None) -> Usage:
        """All that was ever paid, by one model or by all."""
        with self._lock:
            return self._index.spent(model)

    def answered(self, model: str) -> bool:
        """Whether it holds an answer of this model."""
        return any(name == model and status.final for name, status, _ in self.counts())

    def counts(self) -> dict[tuple[str, Status, str], int]:
        """Entries by model, status and kind."""
        with self._lock:
            return self._index.counts()

    def close(self) -> None:
        """Raises DataError where the disk takes no more; the store is closed all the same."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        if self.broken:
            Console(stderr=True).print(
                f"{self.journal}: {self.broken:,} lines cannot be read and are passed over; what they said is asked "
                "for again",
                markup=False,
            )
        with self._lock:
            try:
                self.sync()
            finally:
                self._index.close()
                os.close(self._file)
                self._writer.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def broken(self) -> int:
        """Lines of the journal that cannot be read, as far as they were met; what they said is asked for again."""
        return len(self._passed_over)

    @contextmanager
    def _indexing(self) -> Iterator[None]:
        """Raises DataError where SQLite can write no more: the index is behind the journal from then on."""
        try:
            yield
            self._behind = False
        except sqlite3.OperationalError as error:
            self._behind = True
            raise DataError(
                f"{self.folder / 'index.sqlite'} cannot be written ({error}). Every answer that came is in "
                f"{self.journal}, from which the index is made again. Make room and run again."
            ) from error

    def _read(self, place: int, length: int) -> Entry:
        return Entry.read(os.pread(self._file, length, place))

    def sync(self) -> None:
        """Flush all to the disk."""
        with self._lock:
            os.fsync(self._file)
            with self._indexing():
                if self._behind:
                    self._catch_up()
                self._index.commit()
            self._synced = time.monotonic()

    def _catch_up(self) -> None:
        """Index what was appended since; all of it where the index does not belong to this journal."""
        last = self._index.last()
        try:
            belongs = last is None or self._read(last[0], last[1]).key == last[2]
        except (ValueError, KeyError, TypeError):
            belongs = False
        if not belongs:
            self._index.clear()
        place = self._index.end()
        with self.journal.open("rb") as lines:
            lines.seek(place)
            for line in lines:
                try:
                    self._index.add(place, len(line), Entry.read(line))
                except (ValueError, KeyError, TypeError, OverflowError):  # the last, of a number too large for SQLite
                    self._passed_over.add(place)
                place += len(line)
        self._index.commit()
