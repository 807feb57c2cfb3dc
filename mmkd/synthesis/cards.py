"""Data cards: Markdown about a set that an engine has made, from a template beside the engine."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmkd.data.record_files import jsonl
from mmkd.data.rejected import summary
from mmkd.synthesis.visible import visible
from mmkd.whole_files import write_whole

TEMPLATE = Path(__file__).with_name("card.jinja")
MOST_NAMED = 12


def rendered(template: Path, **values: Any) -> str:
    """The template with `values` and mmkd's `version`; its filter `cell` is the function below.

    A name that it uses and nobody gave is an error.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    return environment.from_string(template.read_text(encoding="utf-8")).render(version=version("mmkd"), **values)


def cell(text: object) -> str:
    """Of any origin, as text inside a table."""
    return visible(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def write_card(out: Path, how: str, facts: dict[str, str]) -> Path:
    """OUT/card.md, of OUT/records.jsonl as it stands there, read row by row, and OUT/rejected.jsonl.

    Args:
        how: how the records were made, in half a sentence; facts: what else is to be known, by name.
    """
    counts = {name: Counter[str]() for name in ("licenses", "sources", "tasks", "engines", "models")}
    pictures: set[str] = set()
    questions = rationales = 0
    records = jsonl(str(out / "records.jsonl"))
    for record in records:
        questions += sum(turn.role == "user" for turn in record.turns)
        rationales += sum(turn.rationale is not None for turn in record.turns)
        pictures.update(one if isinstance(one, str) else hashlib.sha256(one).hexdigest() for one in record.images)
        origin = record.provenance
        counts["licenses"][origin.license or "unknown"] += 1
        counts["sources"][record.source or "unnamed"] += 1
        counts["tasks"][record.task or "unnamed"] += 1
        counts["engines"][origin.engine or "nobody here: as given"] += 1
        counts["models"][origin.model or "no model"] += 1
    told = {name: most(found, MOST_NAMED) for name, found in counts.items()}
    numbers = {"questions": questions, "rationales": rationales, "pictures": len(pictures), "records": len(records)}
    aside = summary(out / "rejected.jsonl")
    text = rendered(TEMPLATE, out=out.name, how=how, facts=facts, aside=aside, **numbers, **told)
    write_whole(out / "card.md", [text])
    return out / "card.md"


def most(found: Counter[str], count: int | None = None) -> str:
    """The most frequent names with their counts, in words."""
    left = len(found) - (count or len(found))
    text = ", ".join(f"{name} ({number:,})" for name, number in found.most_common(count))
    return text + (f" and {left:,} more" if left > 0 else "")
