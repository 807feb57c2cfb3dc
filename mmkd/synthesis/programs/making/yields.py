"""How many questions have a program that holds, by type: what a run prints and keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from mmkd.synthesis.programs.making.items import Item
from mmkd.synthesis.programs.making.trying import is_right
from mmkd.synthesis.programs.making.writing import Candidate
from mmkd.synthesis.programs.reasons import Reason, Verdict
from mmkd.synthesis.programs.runner import Outcome
from mmkd.synthesis.visible import in_table


@dataclass
class Yield:
    """Of one type of question.

    Attributes:
        rows: questions about images; ran, right, verified: those for which some program did so.
        texts: different questions; told: those for which some row has a verified program.
        reasons: why programs are not verified; judged: what a judge said of their answers, each program counted.
    """

    rows: int = 0
    ran: int = 0
    right: int = 0
    verified: int = 0
    texts: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item, outcomes: Sequence[tuple[Candidate, Outcome]]) -> None:
        every = [outcome for _, outcome in outcomes]
        self.rows += 1
        self.ran += any(one.verdict not in (Verdict.REFUSED, Verdict.FAILED) for one in every)
        self.right += item.label is not None and any(map(is_right, every))
        self.texts.add(item.asked)
        if any(one.verdict is Verdict.VERIFIED for one in every):
            self.verified += 1
            self.told.add(item.asked)
        self.reasons.update(str(one.reason) for one in every if one.reason is not None)
        self.judged.update("same" if one.judged else "different" for one in every if one.judged is not None)
        self.judged.update("no verdict" for one in every if one.reason is Reason.UNJUDGED)

    def to_dict(self) -> dict[str, Any]:
        judged = {"judged": dict(self.judged.most_common())} if self.judged else {}
        return {
            "rows": self.rows,
            "ran": self.ran,
            "right": self.right,
            "verified": self.verified,
            "texts": len(self.texts),
            "texts_verified": len(self.told),
            "reasons": dict(self.reasons.most_common()),
            **judged,
        }


class Yields:
    """By type, and over all as the type "all"."""

    def __init__(self) -> None:
        self.types: dict[str, Yield] = {}
        self.all = Yield()

    def add(self, item: Item, outcomes: Sequence[tuple[Candidate, Outcome]]) -> None:
        self.types.setdefault(item.task or "(none)", Yield()).add(item, outcomes)
        self.all.add(item, outcomes)

    def to_dict(self) -> dict[str, Any]:
        return {name: one.to_dict() for name, one in [*sorted(self.types.items()), ("all", self.all)]}

    def table(self) -> Table:
        table = Table("type", "rows", "ran", "right", "verified", "share", "commonest reason why not")
        for name, one in [*sorted(self.types.items()), ("all", self.all)]:
            why = one.reasons.most_common(1)[0][0] if one.reasons else ""
            counts = (f"{count:,}" for count in (one.rows, one.ran, one.right, one.verified))
            table.add_row(in_table(name), *counts, f"{one.verified / max(1, one.rows):.1%}", in_table(why))
        return table
