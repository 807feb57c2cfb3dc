"""Rows that cannot be used: why, how many, and when to stop."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from mmkd.data.records import Turn
from mmkd.errors import DataError
from mmkd.whole_files import write_whole

MOST_BAD = 0.1
FEWEST_SEEN = 50  # before the share of bad rows says anything
SIGMAS = 2  # beyond that share: each of many processes asks after every bad row, so chance has many tries


class BadRow(DataError):
    """One row that cannot be used; the run sets it aside and goes on.

    Args:
        reason: what was found, what is allowed, what to do.
        kind: a few words by which reports count, e.g. "empty answer".
    """

    def __init__(self, reason: str, kind: str = "unreadable row"):
        super().__init__(reason)
        self.kind = kind


def mend_or_drop(key: str) -> str:
    """What to do about bad rows of the sources that a config lists under `key`."""
    return f"Mend the data, or take the source out of {key}."


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises BadRow unless user and assistant take turns, after at most one system turn, no answer is empty, and every
    text is one."""
    roles = [turn.role for turn in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise BadRow(
            f"the roles are {', '.join(map(str, roles)) or 'none'}; allowed: user, assistant, in turn, after at most "
            "one system.",
            "wrong roles",
        )
    for number, turn in enumerate(turns):
        if not isinstance(turn.text, str):
            raise BadRow(f"turn {number} is a {type(turn.text).__name__}; allowed: text.", "wrong roles")
        check_text(turn.text)
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow(f"the answer in turn {number} is empty.", "empty answer")


def check_text(text: str) -> None:
    """Raises BadRow for half of a surrogate pair, as JSON may hold: no tokenizer and no file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        why = f"its text holds {half}, one half of a character; mend the row, or take it out."
        raise BadRow(why, "broken text") from None


class RejectedLog:
    """Appends to `rejected.jsonl` one line for each row set aside: source, index, id, kind, reason.

    Each rank and each loader worker holds its own log on the same file. A line is one write to a file opened for
    appending, so lines never mix. A process writes a row once, and not if it stood there at the first that it wrote;
    two workers that meet the same row in different epochs may each write it, so count with `summary`.

    Args:
        remedy: what to do about too many of them, in a sentence.
    """

    def __init__(self, path: Path, remedy: str = mend_or_drop("data.mixture")):
        self.path, self.remedy = path, remedy
        self.seen = self.bad = 0  # rows tried by this process

    @cached_property
    def _written(self) -> set[tuple[str, int, str]]:
        return {_mark(line) for line in _lines(self.path)}

    def good(self) -> None:
        self.seen += 1

    def reject(self, source: str, index: int, record_id: str, error: BadRow) -> None:
        """Write the row down. Raises DataError once `too_many` rows tried were bad."""
        self.seen += 1
        self.bad += 1
        self.note(source, index, record_id, error)
        if too_many(self.bad, self.seen):
            raise DataError(
                f"{self.bad} of {self.seen} rows tried could not be used, more than {MOST_BAD:.0%}; the last one, row "
                f"{index} of {source}: {error} All reasons are in {self.path}. {self.remedy}"
            )

    def note(self, source: str, index: int, record_id: str, error: BadRow) -> None:
        """Write a line that does not count as a bad row, e.g. a record that was shortened."""
        if (source, index, error.kind) in self._written:
            return
        self._written.add((source, index, error.kind))
        line = {"source": source, "index": index, "id": record_id, "kind": error.kind, "reason": str(error)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, _bytes(line))
        finally:
            os.close(handle)


def too_many(bad: int, seen: int) -> bool:
    """Whether of at least 50 rows more are bad than chance makes of 10 %: 10 of 50, 17 of 100, 121 of 1,000."""
    expected = MOST_BAD * seen
    return seen >= FEWEST_SEEN and bad > expected + SIGMAS * math.sqrt(expected)


def summary(path: Path) -> dict[str, int]:
    """Different rows set aside, by kind."""
    return dict(Counter(sorted(kind for _, _, kind in {_mark(line) for line in _lines(path)})))


def forget(path: Path, rows: Set[tuple[str, int]]) -> None:
    """Take (source, index) out of a log, since these rows are about to be tried anew. Call before any of them is."""
    lines = list(_lines(path))
    kept = [line for line in lines if (line["source"], line["index"]) not in rows]
    if len(kept) < len(lines):
        write_whole(path, map(_bytes, kept))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the tail that a killed process left half written is no line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for text_line in text.split("\n"):  # a reason may hold U+2028 and the like, which are line ends to splitlines
        try:
            line = json.loads(text_line)
            _mark(line)
        except (ValueError, KeyError, TypeError):
            continue
        yield line


def _mark(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["source"], line["index"], line["kind"]


def _bytes(line: dict[str, Any]) -> bytes:
    """Half of a surrogate pair, in an id or a path, is written as JSON escapes it."""
    return (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
