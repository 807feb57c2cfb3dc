"""Writes the docs' tables from the rows: `python -m bench.tables`, or with `--check` only says which differ.

A table stands between `<!-- bench NAME -->` and `<!-- /bench -->`; `<!-- bench NAME: what, what -->` chooses columns.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.rows import RESULTS, ROOT, Row, newest, read
from mmkd.errors import DataError, MmkdError

BLOCK = re.compile(r"^<!-- bench ([a-z0-9_]+)(?:: (.+?))? -->\n(.*?)^<!-- /bench -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- /?bench\b.*$", re.MULTILINE)  # an indented one is an example


def documents(root: Path = ROOT) -> list[Path]:
    """Every file that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, name: str, results: Path = RESULTS) -> str:
    """The text with every table written anew.

    Args:
        name: of the file, for messages.

    Raises: DataError for a marker without its end, an unknown bench or column.
    """
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise DataError(f"{name}: a bench marker is not closed; each needs <!-- bench NAME --> and <!-- /bench -->.")

    def block(found: re.Match[str]) -> str:
        bench, chosen, _ = found.groups()
        head = found[0].splitlines()[0]
        columns = [item.strip() for item in chosen.split(",")] if chosen else None
        try:
            return f"{head}\n{table(read(bench, results), columns)}<!-- /bench -->"
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    return BLOCK.sub(block, text)


def table(rows: list[Row], columns: list[str] | None = None) -> str:
    """Markdown of the newest rows: a line for each case, a column for each `what`; below it how they were measured.

    Raises: DataError for a column that no row has, or one with two units.
    """
    rows = newest(rows)
    known = _ordered(row.what for row in rows)
    if unknown := [name for name in columns or [] if name not in known]:
        raise DataError(f"no row measures {', '.join(unknown)}; there are {', '.join(known)}.")
    columns = columns or known
    rows = [row for row in rows if row.what in columns]
    cells = {(row.case, row.what): row for row in rows}
    heads = [""]
    for what in columns:
        units = _ordered(row.unit for row in rows if row.what == what)
        if len(units) > 1:
            raise DataError(f"{what} has the units {', '.join(units)}; a column has one.")
        heads.append(_cell(f"{what.replace('_', ' ')} ({units[0]})"))
    lines = [heads, ["---"] + ["---:"] * len(columns)]
    for case in _ordered(row.case for row in rows):
        lines.append([_cell(case)] + [_value(cells.get((case, what))) for what in columns])
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"\n{body}\n{_footnote(rows)}\n"


def _footnote(rows: list[Row]) -> str:
    """How the rows were measured. Of several commands under the same circumstances the first stands for all."""
    commands: dict[str, list[str]] = {}
    for row in rows:
        seeds = f"seeds {', '.join(map(str, row.seeds))}" if len(row.seeds) > 1 else f"seed {row.seeds[0]}"
        commit = row.commit[:10] + row.commit[40:]
        commands.setdefault(f"{seeds}, commit {commit}, {row.machine}, {row.date[:10]}.", []).append(row.command)
    notes = []
    for around, found in commands.items():
        first, *others = _ordered(found)
        more = f" and {len(others)} more in bench/results/{rows[0].bench}.jsonl" if others else ""
        notes.append(f"`{first}`{more}, {around}")
    return _cell(" ".join(notes))


def _value(row: Row | None) -> str:
    if row is None:
        return ""
    # The bound of an interval has no spread of its own; a row of several seeds writes 0.
    return _number(row.value) + (f" ± {_number(row.spread)}" if row.spread else "")


def _number(value: float) -> str:
    """Whole numbers whole, others with three figures or two decimals, whichever says more."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) < 1e-9:  # a difference of equal means
        return "0"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _ordered(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def main(arguments: list[str]) -> int:
    """0 where every table agrees (or was written), 1 where `--check` found one that does not, 2 for an error."""
    if set(arguments) - {"--check"}:
        print("usage: python -m bench.tables [--check]", file=sys.stderr)
        return 2
    stale = []
    try:
        for path in documents():
            before = path.read_text(encoding="utf-8")
            after = filled(before, path.relative_to(ROOT).as_posix())
            if before != after:
                stale.append(path.relative_to(ROOT).as_posix())
                if "--check" not in arguments:
                    path.write_text(after, encoding="utf-8")
    except MmkdError as error:
        print(error, file=sys.stderr)
        return 2
    if "--check" in arguments and stale:
        print(f"tables differ from bench/results in {', '.join(stale)}; run python -m bench.tables", file=sys.stderr)
        return 1
    print("\n".join(f"written: {name}" for name in stale) or "every table agrees with its rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
