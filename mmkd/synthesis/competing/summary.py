"""A competition, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from mmkd.synthesis.visible import in_table

COLUMNS = ("round", "rows", "T", "S", "hard", "T held", "S held", "win", "order", "none", "new", "pool")  # 80 wide
CAPTION = (
    "rows: trained on · T, S: mean scores of teacher and student on the pool, then on the held-out split · "
    "hard: share of difficult items · win: held-out win rate · order: pairs decided by the order of answers · "
    "none: no verdict · new: drafts that stayed"
)


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The rows of rounds.jsonl."""
    found = Table(
        title=in_table(title),
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for column in COLUMNS:
        found.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(*cells(row))
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A round as a row of a table: as the terminal and the report show it."""
    pool, held, new = row.get("pool_standing"), row["held_out"], row.get("augmented")
    unscored = held["unscored"] + (pool["unscored"] if pool else 0)
    return [
        str(row["round"]),
        f"{row['trained']:,}" if row["trained"] else "",
        f"{pool['teacher']:.2f}" if pool else "",
        f"{pool['student']:.2f}" if pool else "",
        f"{pool['hard_share']:.0%}" if pool else "",
        f"{held['teacher']:.2f}",
        f"{held['student']:.2f}",
        f"{held['win_rate']:.0%}",
        f"{row['disagreed'] / row['compared']:.0%}" if row["compared"] else "",
        f"{unscored:,}",
        f"{new['kept']}/{new['drafted']}" if new else "",
        f"{row['pool']:,}",
    ]


def stopped_moving(win_rates: Sequence[float], least: float, patience: int) -> bool:
    """Whether none of the last `patience` rounds rose by `least` over the best before it.

    Args:
        win_rates: of the start model, then of each round.
    """
    if len(win_rates) <= patience:
        return False
    return all(
        win_rates[place] < max(win_rates[:place]) + least for place in range(len(win_rates) - patience, len(win_rates))
    )
