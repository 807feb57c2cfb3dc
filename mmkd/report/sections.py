"""Parts that the pages of data engines have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmkd.report.page import Numbers
from mmkd.report.plots import Chart, Line, Point, line_chart


@dataclass
class Section:
    """A heading with what stands below it."""

    heading: str
    about: str = ""
    charts: list[Chart] = field(default_factory=list)
    table: Numbers | None = None
    cards: list[dict[str, Any]] = field(default_factory=list)


def round_chart(
    title: str,
    lines: Sequence[tuple[str, Sequence[Point], str]],
    show: Callable[[float], str],
    from_zero: bool = False,
) -> list[Chart]:
    """A chart over rounds; nothing where no line (name, points, style) has a point that can be drawn.

    Args:
        lines: with the round's number as x.
    """
    finite = [(name, [(x, y) for x, y in points if math.isfinite(y)], style) for name, points, style in lines]
    drawn = [Line(name, points, style, marks=True) for name, points, style in finite if points]
    if not drawn:
        return []
    ticks = [(x, f"{x:g}") for x in sorted({x for line in drawn for x, _ in line.points})]
    return [line_chart(title, drawn, show=show, x_ticks=ticks, x_name="round", from_zero=from_zero)]


def count_table(name: str, columns: dict[str, dict[str, int]]) -> Numbers | None:
    """How often each thing was counted in each column, the commonest first; None where nothing was."""
    totals: dict[str, int] = {}
    for counts in columns.values():
        for key, count in counts.items():
            totals[key] = totals.get(key, 0) + count
    if not totals:
        return None
    keys = sorted(totals, key=lambda key: (-totals[key], key))
    rows = [[key, *(f"{counts.get(key, 0):,}" for counts in columns.values())] for key in keys]
    return Numbers([name, *columns], rows)
