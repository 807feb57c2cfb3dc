"""What a selector is.

@register("short_answers")
def short_answers(rows: Rows, most: int = 20) -> dict[int, str]:
    return {i: f"an answer of more than {most} letters"
            for i, record in rows if any(len(t.text) > most for t in record.turns if t.role == "assistant")}

In a package of its own, an entry point of the group `mmkd.selectors` makes it known to the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkd.data.records import Record
from mmkd.data.rejected import BadRow
from mmkd.synthesis.plugins import by_name


@dataclass(frozen=True)
class Rows:
    """Records that are still kept, by index; read anew each time they are gone through.

    Attributes:
        seed: of whatever a selector draws.
        folder: where a selector may keep what should not be computed twice.
    """

    records: Sequence[Record]
    kept: Sequence[int]
    seed: int
    folder: Path

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return ((index, self.records[index]) for index in self.kept)

    def __len__(self) -> int:
        return len(self.kept)


# Rows and the options of the YAML -> the reason of each row that goes, by index: a BadRow where it has its own kind.
Selector = Callable[..., Mapping[int, str | BadRow]]

GROUP = "mmkd.selectors"
SELECTORS: dict[str, Selector] = {}


def register(name: str) -> Callable[[Selector], Selector]:
    """Makes a function the selector `name`; its keyword arguments are the options of the YAML."""

    def add(function: Selector) -> Selector:
        SELECTORS[name] = function
        return function

    return add


def selector(name: str) -> Selector:
    """The packaged, registered or installed selector of that name. Raises ConfigError with the nearest name."""
    return by_name(name, "selector", SELECTORS, GROUP)
