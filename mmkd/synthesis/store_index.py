"""Where in a journal each entry is, and sums over it, in SQLite: made from the journal, never the other way."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from mmkd.synthesis.requests import Status, Usage

if TYPE_CHECKING:
    from mmkd.synthesis.store import Entry

PAGE = 1000  # places fetched at once
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    place INTEGER PRIMARY KEY, length INTEGER, key TEXT, status TEXT, model TEXT, kind TEXT, response TEXT,
    prompt_tokens INTEGER, answer_tokens INTEGER, cost REAL, estimated INTEGER
);
CREATE INDEX IF NOT EXISTS by_key ON entries (key, place);
CREATE INDEX IF NOT EXISTS by_status ON entries (status, place);
CREATE INDEX IF NOT EXISTS by_response ON entries (response, place) WHERE response IS NOT NULL;
"""


class Index:
    """See `mmkd.synthesis.store`. Not locked: the store does that."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self._open()
        except sqlite3.DatabaseError:  # not a database, or half of one: the journal has it all
            self._remove()
            self._open()

    def add(self, place: int, length: int, entry: Entry) -> None:
        usage = entry.usage
        self._rows.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                place, length, entry.key, entry.status, entry.model, entry.kind, entry.response_id,
                usage.prompt_tokens, usage.answer_tokens, usage.cost, usage.estimated,
            ),
        )  # fmt: skip

    def places(self, key: str | None, status: Status | None, after: int) -> list[tuple[int, int, str]]:
        """(place, length, key) of the next entries behind `after`."""
        where, values = "place > ?", [after]
        for column, value in (("key", key), ("status", status)):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        query = f"SELECT place, length, key FROM entries WHERE {where} ORDER BY place LIMIT {PAGE}"
        return self._rows.execute(query, values).fetchall()

    def owner(self, response_id: str) -> str | None:
        query = "SELECT key FROM entries WHERE response = ? ORDER BY place LIMIT 1"
        row = self._rows.execute(query, (response_id,)).fetchone()
        return row[0] if row else None

    def spent(self, model: str | None) -> Usage:
        query = "SELECT SUM(prompt_tokens), SUM(answer_tokens), SUM(cost), MAX(estimated) FROM entries"
        row = self._rows.execute(query + (" WHERE model = ?" if model else ""), (model,) if model else ()).fetchone()
        return Usage(row[0] or 0, row[1] or 0, row[2] or 0.0, bool(row[3]))

    def counts(self) -> dict[tuple[str, Status, str], int]:
        query = "SELECT model, status, kind, COUNT(*) FROM entries GROUP BY model, status, kind"
        return {(model, Status(status), kind): count for model, status, kind, count in self._rows.execute(query)}

    def last(self) -> tuple[int, int, str] | None:
        """(place, length, key) of the last entry."""
        query = "SELECT place, length, key FROM entries ORDER BY place DESC LIMIT 1"
        return self._rows.execute(query).fetchone()

    def end(self) -> int:
        """The byte of the journal up to which it is indexed."""
        last = self.last()
        return last[0] + last[1] if last else 0

    def commit(self) -> None:
        self._rows.commit()

    def clear(self) -> None:
        self._rows.close()
        self._remove()
        self._open()

    def close(self) -> None:
        """What was not committed is gone."""
        self._rows.close()

    def _open(self) -> None:
        # One lock of the store stands before it, whichever thread comes.
        self._rows = sqlite3.connect(self.file, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.executescript(SCHEMA)
        self._rows.execute("SELECT COUNT(*) FROM (SELECT 1 FROM entries LIMIT 1)")
        if self._rows.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            self._rows.close()
            raise sqlite3.DatabaseError("damaged")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
