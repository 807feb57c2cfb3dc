"""What a run did so far: how many, what became of them, what they cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table

from mmkd.synthesis.requests import Status, Usage
from mmkd.synthesis.store import Entry
from mmkd.synthesis.visible import in_table


@dataclass
class Tally:
    """Counts of one run.

    Attributes:
        replies: entries kept, by status; reused: answers that the store had already.
        kinds: of what was not done.
    """

    replies: Counter[Status] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    usage: Usage = field(default_factory=Usage)

    def kept(self, entry: Entry) -> None:
        self.replies[entry.status] += 1
        self.usage += entry.usage
        if entry.status is not Status.DONE:
            self.kinds[entry.kind] += 1

    def stored(self, entry: Entry) -> None:
        self.reused += 1

    @property
    def ended(self) -> int:
        """Requests asked in this run that are done, rejected, refused or without a reply."""
        return sum(count for status, count in self.replies.items() if status is not Status.UNUSABLE)

    @property
    def finished(self) -> float:
        """Share of the requests ended in this run that are done."""
        return self.replies[Status.DONE] / self.ended if self.ended else 0.0

    def line(self) -> str:
        """One line, for beside a progress bar."""
        parts = [f"{self.replies[Status.DONE]:,} done"]
        for name, count in (
            ("rejected", self.replies[Status.REJECTED]),
            ("refused", self.replies[Status.REFUSED]),
            ("without a reply", self.replies[Status.UNANSWERED]),
            ("kept before", self.reused),
        ):
            if count:
                parts.append(f"{count:,} {name}")
        if self.usage.cost:
            parts.append(f"cost {self.usage.cost:,.2f}")
        return " · ".join(parts)

    def table(self, title: str) -> Table:
        """Yield and cost, and why replies were no answers."""
        table = Table("", "", title=in_table(title), title_justify="left", show_header=False)
        table.columns[1].justify = "right"
        table.add_row("kept before", f"{self.reused:,}")
        table.add_row("asked now", f"{self.ended:,}")
        table.add_row("done", f"{self.replies[Status.DONE]:,} ({self.finished:.1%})")
        table.add_row("rejected", f"{self.replies[Status.REJECTED]:,}")
        table.add_row("refused", f"{self.replies[Status.REFUSED]:,}")
        table.add_row("without a reply", f"{self.replies[Status.UNANSWERED]:,}")
        for kind, count in self.kinds.most_common():
            table.add_row(f"  {kind}", f"{count:,}")
        about = "at most " if self.usage.estimated else ""
        table.add_row("prompt tokens", f"{about}{self.usage.prompt_tokens:,}")
        table.add_row("answer tokens", f"{about}{self.usage.answer_tokens:,}")
        table.add_row("cost", f"{about}{self.usage.cost:,.4f}")
        if self.replies[Status.DONE]:
            each = self.usage.cost / self.replies[Status.DONE]
            table.add_row("cost of one answer", f"{each:,.6f}")
        return table
