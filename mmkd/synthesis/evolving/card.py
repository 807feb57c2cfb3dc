"""The data card of an evolved set."""

from __future__ import annotations

from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.synthesis.evolving.summary import cells
from mmkd.synthesis.programs.values import visible

TEMPLATE = Path(__file__).with_name("card.jinja")


def card(config: EvolveConfig, summary: dict[str, Any]) -> str:
    """Markdown; all figures are of `summary`."""
    rounds = summary["rounds"][1:]
    last = summary["rounds"][-1]
    made = summary["made by"]
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        summary=summary,
        out=Path(config.out).name,
        version=version("mmkd"),
        rows=[cells(row) for row in summary["rounds"]],
        rounds=rounds,
        directions=sorted({name for row in rounds for name in row["directions"]}),
        kinds=list(dict.fromkeys(kind for row in rounds for kind in row["rejected"])),
        beside=list(zip_longest(last["forms"].items(), last["skills"].items(), fillvalue=("", ""))),
        answers=", ".join(f"{_cell(answer)} ({count})" for answer, count in last["answers"].items()),
        same_model=made["evolver"] == made["judge"],
    )


def _cell(text: object) -> str:
    """Of any origin, as text inside a table."""
    return visible(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
