"""What came of the programs of each question, kept as it comes: a journal that a killed run goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.errors import DataError
from mmkd.synthesis.programs.runner import Outcome
from mmkd.whole_files import append_whole, whole_lines


class Ledger:
    """Lines of {key, outcomes} in one file, which one process writes at a time; only places are held in memory.

    A line is one write; what a kill tore off the last one is cut away when the file is opened, and a line that cannot
    be read is as if it were not there.

    Raises: DataError where another process writes it.
    """

    def __init__(self, file: Path):
        self.path = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(file.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{file} is being written by another process; wait for it, or give another out.") from None
        self._file = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = whole_lines(self._file)
        self._places: dict[str, tuple[int, int]] = {}
        place = 0
        with file.open("rb") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    self._places[json.loads(line)["key"]] = (place, len(line))
                place += len(line)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, outcomes: Sequence[Outcome]) -> None:
        """Raises DataError where the disk takes no more; the file is then as it was before."""
        row = {"key": key, "outcomes": [one.to_dict() for one in outcomes]}
        line = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        size = append_whole(self._file, line, self._size, self.path)
        self._places[key] = (self._size, len(line))
        self._size = size

    def get(self, key: str) -> list[Outcome]:
        """Raises KeyError where it is not there."""
        place, length = self._places[key]
        return [Outcome.from_dict(row) for row in json.loads(os.pread(self._file, length, place))["outcomes"]]

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)
        self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
