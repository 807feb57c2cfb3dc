"""What each round did: yield, difficulty, skills, forms, reasons."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table

from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.synthesis.same_answer import plain


def summarise(journal: Journal, rounds: int) -> dict[str, Any]:
    """One dict a round, round 0 (the seeds) first; means are over the items as they stand after the round."""
    return {"rounds": [_round(journal, number) for number in range(rounds + 1)]}


def _round(journal: Journal, number: int) -> dict[str, Any]:
    items = kept = turned = ruled = graded = 0
    sums: Counter[str] = Counter()
    proposed: Counter[str] = Counter()
    good: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    skills: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for one in journal.read(number):
        content = one.current.content
        items += 1
        sums["steps"] += len(content.steps)
        sums["skills"] += len(content.skills)
        sums["objects"] += len(content.objects)
        skills.update(content.skills)
        forms[content.form] += 1
        answers[plain(content.answer)[:40]] += 1
        sums["worded"] += one.current.request is not None
        difficulty = _difficulty(one)
        if difficulty is not None:
            graded += 1
            sums["item difficulty"] += difficulty
        if one.direction is None:
            continue
        proposed[one.direction] += 1
        ruled += one.parent_difficulty is not None
        turned += one.turned
        if one.kept:
            kept += 1
            good[one.direction] += 1
            sums["difficulty"] += one.current.difficulty or 0
            sums["parent difficulty"] += one.parent_difficulty or 0
        else:
            kinds[one.kind] += 1
    found: dict[str, Any] = {"round": number, "items": items}
    found |= {f"{name} per item": round(sums[name] / max(items, 1), 3) for name in ("steps", "skills", "objects")}
    found["difficulty per item"] = round(sums["item difficulty"] / graded, 3) if graded else None
    found["items with a difficulty"] = graded
    found["in a model's words"] = sums["worded"]
    if number:
        found |= {"kept": kept, "yield": round(kept / max(items, 1), 4)}
        found["directions"] = {name: {"tried": proposed[name], "kept": good[name]} for name in sorted(proposed)}
        found["difficulty of kept"] = round(sums["difficulty"] / kept, 3) if kept else None
        found["difficulty of their parents"] = round(sums["parent difficulty"] / kept, 3) if kept else None
        found |= {"judged": ruled, "judge turned": turned, "rejected": dict(kinds.most_common())}
    return found | {
        "forms": dict(forms.most_common()),
        "skills": dict(skills.most_common()),
        "answers": dict(answers.most_common(12)),
    }


def _difficulty(one: Outcome) -> float | None:
    """Of the item as it stands after the round; of a seed that no judge has seen, none is known. A version that failed
    was compared with what then stayed."""
    known = one.current.difficulty
    return one.parent_difficulty if known is None and not one.kept else known


def shown(summary: dict[str, Any]) -> Table:
    table = Table("round", "items", "kept", "yield", "difficulty", "parents'", "steps", "skills", title_justify="left")
    for row in summary["rounds"]:
        table.add_row(*cells(row))
    return table


def cells(row: dict[str, Any]) -> list[str]:
    """A round as a row of a table: as the terminal and the card show it."""
    if not row["round"]:
        kept, share, difficulty, parents = "", "", "", ""
    else:
        kept, share = f"{row['kept']:,}", f"{row['yield']:.1%}"
        difficulty, parents = (
            "" if row[name] is None else f"{row[name]:.2f}"
            for name in ("difficulty of kept", "difficulty of their parents")
        )
    name = str(row["round"]) if row["round"] else "seeds"
    lengths = [f"{row['steps per item']:.2f}", f"{row['skills per item']:.2f}"]
    return [name, f"{row['items']:,}", kept, share, difficulty, parents, *lengths]
