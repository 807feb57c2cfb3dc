"""A competition, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

COLUMNS = ("round", "trained on", "teacher", "student", "hard", "held-out teacher", "student ", "win rate", "order",
           "no verdict", "new", "yield", "pool")  # fmt: skip


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """`rows` of rounds.jsonl: scores are means from 1 to 10, `order` how often the order of two answers decided."""
    found = Table(title=title, title_justify="left")
    for column in COLUMNS:
        found.add_column(column.strip(), justify="right")
    for row in rows:
        pool, held, new = row.get("pool_standing"), row["held_out"], row.get("augmented")
        unscored = held["unscored"] + (pool["unscored"] if pool else 0)
        found.add_row(
            str(row["round"]),
            f"{row['trained']:,}" if row["trained"] else "",
            f"{pool['teacher']:.2f}" if pool else "",
            f"{pool['student']:.2f}" if pool else "",
            f"{pool['hard_share']:.1%}" if pool else "",
            f"{held['teacher']:.2f}",
            f"{held['student']:.2f}",
            f"{held['win_rate']:.1%}",
            f"{row['disagreed'] / row['compared']:.1%}" if row["compared"] else "",
            f"{unscored:,}",
            f"{new['kept']:,} of {new['drafted']:,}" if new else "",
            f"{new['yield']:.1%}" if new else "",
            f"{row['pool']:,}",
        )
    return found


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
