"""The data card of what a competition has made: its pool, the rows of each training, the pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import summary
from mmkd.synthesis.answering import both
from mmkd.synthesis.cards import MOST_NAMED, most, rendered
from mmkd.synthesis.competing.costs import HEADS, costs
from mmkd.synthesis.competing.items import Item, each_row, open_items
from mmkd.synthesis.competing.pairs import FILE
from mmkd.synthesis.competing.summary import COLUMNS, cells

TEMPLATE = Path(__file__).with_name("card.jinja")
GIVEN = "as given"


def card(config: CompeteConfig, out: Path, rounds: Sequence[dict[str, Any]]) -> str:
    """Markdown, from the files of a competition and the rows of its rounds so far."""
    file = max((out / "pool").glob("*.jsonl"), key=lambda one: int(one.stem))
    items = open_items(file)
    models = {"teacher": config.teacher, "judge": config.judge.model, "grounding": config.filters.grounding}
    models["without the image"] = config.filters.blind.model if config.filters.blind is not None else None
    if config.refine is not None:
        models["refiner"] = config.refine.model or config.teacher
    names = {role: named(model) for role, model in models.items() if model is not None}
    names = {"judge": "the records' own answers"} | names | {"augmentor": _augmentor(config)}
    drafts = {row["round"]: row["augmented"] for row in rounds if row.get("augmented")}
    return rendered(
        TEMPLATE,
        config=config,
        out=out.name,
        pool=str(file.relative_to(out)),
        items=len(items),
        pictures=len({item.images for item in items}),
        names=names,
        same_model=len({names[role] for role in ("teacher", "judge")}) == 1,
        licenses=most(Counter(both(item.license, item.answer_license) or "unknown" for item in items)),
        made=_made(items),
        tasks=most(Counter(item.task or "unnamed" for item in items), MOST_NAMED),
        columns=COLUMNS,
        rows=[cells(row) for row in rounds],
        paid_columns=HEADS,
        paid=[one.cells() for one in costs(out / "asked")],
        drafts=drafts,
        trust=rounds[-1]["held_out"].get("judge_against_labels"),
        gone=sorted({kind for row in drafts.values() for kind in row["gone"]}),
        worded=list(dict.fromkeys(kind for row in drafts.values() for kind in row.get("worded", {}))),
        pairs={row["round"]: pairs_of(out, row) for row in rounds if row["round"]},
        aside=_aside(out),
    )


def named(model: ModelSection) -> str:
    if model.endpoint is not None:
        return model.endpoint.model
    return model.vlm.model if model.vlm is not None else model.language.source if model.language is not None else ""


def _augmentor(config: CompeteConfig) -> str:
    options, name = config.augment.options(), config.augment.name
    for option, words in (("model", ", "), ("rewrite", ", its questions reworded by ")):
        if isinstance(model := options.get(option), dict):
            name += words + named(ModelSection.model_validate(model))
    return name


def _made(items: Sequence[Item]) -> dict[str, dict[int, int]]:
    """Questions by who made them and the round in which they joined."""
    found: dict[str, Counter[int]] = {}
    for item in items:
        found.setdefault(item.engine or GIVEN, Counter())[item.round] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(found.items())}


def pairs_of(out: Path, row: dict[str, Any]) -> dict[str, Any]:
    pairs = Counter(pair["winner"] for pair in each_row(out / f"round-{row['round']}" / FILE))
    return {"winners": pairs, "refined": row.get("refined"), "trained": row.get("preferred", 0)}


def _aside(out: Path) -> dict[str, dict[str, int]]:
    """What each step set aside, by reason; steps in the order of their rounds."""

    def place(file: Path) -> tuple[int, str]:
        number = re.search(r"-(\d+)", file.stem)
        return int(number[1]) if number else -1, file.stem

    files = sorted((out / "rejected").glob("*.jsonl"), key=place)
    return {file.stem: found for file in files if (found := summary(file))}
