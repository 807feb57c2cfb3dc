"""What each role of a competition was asked and paid, in this run and all before: counted in the stores of replies.

It is no part of rounds.jsonl, which is the same however often a run is killed: which question is asked without its
picture, to find out whether pictures are read, and what broken replies cost need not be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from mmkd.synthesis.paid import stores_in
from mmkd.synthesis.requests import Status, Usage
from mmkd.synthesis.visible import in_table

HEADS = ("role", "done", "rejected", "prompt tokens", "answer tokens", "cost")


@dataclass(frozen=True)
class Cost:
    """Attributes: done, rejected: requests that ended so; usage: of all replies, also of those that were no answer."""

    role: str
    done: int
    rejected: int
    usage: Usage

    def cells(self) -> list[str]:
        """As the terminal and the card show it."""
        ended, about = self.done + self.rejected, "at most " if self.usage.estimated else ""
        return [
            self.role,
            f"{self.done:,}" + (f" ({self.done / ended:.1%})" if ended else ""),
            f"{self.rejected:,}",
            f"{about}{self.usage.prompt_tokens:,}",
            f"{about}{self.usage.answer_tokens:,}",
            f"{about}{self.usage.cost:,.4f}",
        ]


def costs(asked: Path) -> list[Cost]:
    """Of each role whose store lies in `asked`, by name. Raises DataError where another process writes one of them."""
    found = []
    for store in stores_in(asked):
        ended = Counter[Status]()
        for (_, status, _), count in store.counts().items():
            ended[status] += count
        role = str(store.folder.relative_to(asked))
        found.append(Cost(role, ended[Status.DONE], ended[Status.REJECTED], store.spent()))
    return found


def cost_table(found: list[Cost]) -> Table:
    """A line for each role."""
    table = Table(title="asked and paid in all", title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    for column in HEADS:
        table.add_column(column, justify="left" if column == "role" else "right")
    for one in found:
        table.add_row(*map(in_table, one.cells()))
    return table
