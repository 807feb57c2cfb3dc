"""Rounds on disk: a line for each item, in the order of the seeds, written a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from mmkd.errors import DataError
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.whole_files import append_whole, write_whole

CHUNK = 512  # items; the most whose tools run again after a kill. Answers of models are kept one by one.


class Journal:
    """`rounds/N.jsonl`. A chunk is appended in one write, after all of it is done; half a chunk is cut away."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, round: int) -> Path:
        return self.folder / f"{round}.jsonl"

    def begin(self, round: int, items: int | None) -> int:
        """How many items of the round are done, in whole chunks or all. What a kill left beyond is cut away.

        Args:
            items: of the round; None for round 0, which is written whole or not at all.
        """
        if not self.file(round).exists():
            return 0
        with self.file(round).open("r+b") as lines:
            ends = [0]
            for line in lines:
                if line.endswith(b"\n"):
                    ends.append(ends[-1] + len(line))
            whole = len(ends) - 1
            if items is not None and whole != items:
                whole -= whole % CHUNK
            lines.truncate(ends[whole])
        return whole

    def append(self, round: int, outcomes: Sequence[Outcome]) -> None:
        """Raises DataError where the disk takes no more; the round is then as it was before."""
        data = b"".join(one.model_dump_json().encode() + b"\n" for one in outcomes)
        handle = os.open(self.file(round), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            append_whole(handle, data, os.fstat(handle).st_size, self.file(round))
            os.fsync(handle)
        finally:
            os.close(handle)

    def write(self, round: int, outcomes: Iterable[Outcome]) -> None:
        """A round, whole or not at all. Raises DataError where the disk takes no more."""
        write_whole(self.file(round), (one.model_dump_json() + "\n" for one in outcomes))

    def read(self, round: int, start: int = 0) -> Iterator[Outcome]:
        """The round's outcomes from item `start` on. Raises DataError for a line that was changed by hand."""
        with self.file(round).open("rb") as lines:
            for number, line in enumerate(lines):
                if number >= start:
                    try:
                        yield Outcome.model_validate_json(line)
                    except ValidationError as error:
                        raise DataError(
                            f"{self.file(round)}:{number + 1} is no outcome of a round ({error.error_count()} "
                            "problems). Remove this file and those of later rounds, and run again: kept answers are "
                            "not paid again."
                        ) from error
