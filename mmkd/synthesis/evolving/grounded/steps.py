"""The steps that answer a plan, and the skills they take."""

from __future__ import annotations

from collections.abc import Sequence

from mmkd.data.scene_questions import Thing, Words
from mmkd.synthesis.evolving.grounded.plans import Plan
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.items import Skill, Step

SUMS = {
    "count": ["#1"], "sum": ["#1 + #2"], "sum of three": ["#1 + #2 + #3"], "compare": ["#1 - #2"],
    "difference": ["#1 - #2"], "together": ["#1 + #2", "#4 - #3"],
}  # fmt: skip


def skills(plan: Plan) -> list[Skill]:
    if plan.kind == "walk":
        return ["grounding", "referring", "relation description", *(["existence"] if plan.how == "exists" else [])]  # type: ignore[list-item]
    return ["grounding", "existence" if plan.kind == "exists" else "calculating"]


def steps(plan: Plan, sight: Sight) -> list[Step]:
    """The functions that answer it. Descriptions name no colour together with a shape: scenes hold some pairs out."""
    if plan.kind == "walk":
        way = way_of(plan, sight)
        made = [grounding(plan.words[0], sight)]
        for side, thing in zip(plan.sides, way[1:]):
            seen = seen_of(plan, thing)
            box, words = sight.boxes[thing], f"{side} it is a {seen}"
            made.append(Step(function="referring", argument="", boxes=[box], result=seen, description=words))
        return made
    made = [grounding(words, sight) for words in plan.words]
    for expression, filled, value in sums(plan, [len(sight.fitting(words)) for words in plan.words]):
        words = f"{filled} = {value}" if " " in expression else f"that makes {value}"
        made.append(Step(function="calculate", argument=expression, boxes=[], result=str(value), description=words))
    return made


def way_of(plan: Plan, sight: Sight) -> list[Thing]:
    """The things on a walk that has an answer, from its start."""
    (start,) = sight.fitting(plan.words[0])
    return sight.walk(start, plan.sides) or []


def seen_of(plan: Plan, thing: Thing) -> str:
    """What a walk notes of a thing on its way: what its question is about, and that alone."""
    what = "shape" if plan.how == "exists" and " shape" not in f" {plan.words[1]}" else plan.how
    return thing.shape if what == "shape" else str(Words(color=thing.color))


def sums(plan: Plan, counts: Sequence[int]) -> list[tuple[str, str, int]]:
    """What is calculated from the numbers of its things: expression, with numbers filled in, value."""
    values, found = list(counts), []
    for expression in SUMS.get(plan.kind, []):
        terms = expression.replace("#", "").split()
        value = values[int(terms[0]) - 1]
        for sign, place in zip(terms[1::2], terms[2::2]):
            value += values[int(place) - 1] if sign == "+" else -values[int(place) - 1]
        filled = " ".join(str(values[int(term) - 1]) if term.isdigit() else term for term in terms)
        found.append((expression, filled, value))
        values.append(value)
    return found


def grounding(words: str, sight: Sight) -> Step:
    found = sight.fitting(words)
    boxes = [sight.boxes[thing] for thing in found]
    return Step(function="grounding", argument=words, boxes=boxes, result="", description=finding(words, len(found)))


def finding(words: str, count: int) -> str:
    return f"I find {count} {words}" + ("" if count == 1 else "s")
