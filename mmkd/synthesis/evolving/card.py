"""The data card of an evolved set."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.synthesis.cards import cell, rendered
from mmkd.synthesis.evolving.summary import cells

TEMPLATE = Path(__file__).with_name("card.jinja")


def card(config: EvolveConfig, summary: dict[str, Any]) -> str:
    """Markdown; all figures are of `summary`."""
    rounds = summary["rounds"][1:]
    last = summary["rounds"][-1]
    made = summary["made by"]
    return rendered(
        TEMPLATE,
        config=config,
        summary=summary,
        out=Path(config.out).name,
        rows=[cells(row) for row in summary["rounds"]],
        rounds=rounds,
        directions=sorted({name for row in rounds for name in row["directions"]}),
        kinds=list(dict.fromkeys(kind for row in rounds for kind in row["rejected"])),
        beside=list(zip_longest(last["forms"].items(), last["skills"].items(), fillvalue=("", ""))),
        answers=", ".join(f"{cell(answer)} ({count})" for answer, count in last["answers"].items()),
        same_model=made["evolver"] == made["judge"],
    )
