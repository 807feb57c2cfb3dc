"""A folder that is read leniently: what is missing or broken becomes a note, and the rest is still shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmkd.errors import MmkdError

Made = TypeVar("Made")

UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    yaml.YAMLError,
)


@dataclass
class Folder:
    """Attributes: notes: what the page cannot show, and why."""

    path: Path
    notes: list[str] = field(default_factory=list, kw_only=True)

    @property
    def title(self) -> str:
        return "/".join(self.path.resolve().parts[-2:])

    def try_to(self, part: str, work: Callable[[], Any], default: Any, hint: str = "") -> Any:
        """What `work` gives; where it cannot, `default` and a note that names the part and the reason."""
        try:
            return work()
        except FileNotFoundError as error:
            self.notes.append(f"{part}: {Path(str(error.filename or part)).name} is not there. {hint}".strip())
        except UNREADABLE as error:
            self.notes.append(f"{part}: cannot be read ({error}). {hint}".strip())
        return default

    def each(self, part: str, rows: Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], Made]) -> Iterator[Made]:
        """`make` of each row; rows that it cannot read are counted in a note, as is a file that is not there."""
        broken = 0
        try:
            for row in rows:
                try:
                    made = make(row)
                except (*UNREADABLE, MmkdError):
                    broken += 1
                else:
                    yield made
        except OSError as error:
            self.notes.append(f"{part}: {Path(str(error.filename)).name} cannot be read ({error.strerror}).")
        if broken:
            self.notes.append(f"{part}: {broken:,} lines cannot be read and are left out.")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a torn line (a killed run) is passed over. Raises OSError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def read_json(path: Path) -> Any:
    """Raises OSError, or ValueError for what is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not names and values")
    return value
