"""Questions about scenes as plans: what is looked for, and how the answer follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

from mmkd.data.scene_questions import COLORS, DIRECTIONS, HELD_OUT, SHAPES, Words
from mmkd.synthesis.evolving.grounded.sight import Sight, read
from mmkd.synthesis.evolving.outcomes import Rejection

_SIDE = "(left of|right of|above|below)"
_CHAIN = rf"{_SIDE}((?: the shape that is {_SIDE})*) the ([a-z ]+?)"
PARTS = {"exists": 1, "count": 1, "compare": 2, "sum": 2, "difference": 2, "sum of three": 3, "together": 3}


@dataclass(frozen=True)
class Plan:
    """One question.

    Attributes:
        kind: a key of PARTS, or walk (to a neighbour, its neighbour, ..).
        words: descriptions; of a walk where it starts, and for how "exists" also what is looked for at its end.
        how: compare: more, fewer, equal; walk: color, shape, exists.
        sides: of a walk, from its start.
    """

    kind: str
    words: tuple[str, ...]
    how: str = ""
    sides: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """How many steps answer it."""
        if self.kind == "walk":
            return 1 + len(self.sides)
        return {"exists": 1, "count": 2, "sum of three": 4, "together": 5}.get(self.kind, 3)

    @property
    def skills(self) -> int:
        return 3 + (self.how == "exists") if self.kind == "walk" else 2


def answer(plan: Plan, sight: Sight) -> str | None:
    """The true answer; None where the question has none here (a start that is not one thing, a way that ends)."""
    if plan.kind == "walk":
        starts = sight.fitting(plan.words[0])
        way = sight.walk(starts[0], plan.sides) if len(starts) == 1 else None
        if way is None:
            return None
        if plan.how == "exists":
            return _yes(read(plan.words[1]).fits(way[-1]))
        return way[-1].color if plan.how == "color" else way[-1].shape
    counts = [len(sight.fitting(words)) for words in plan.words]
    if plan.kind == "exists":
        return _yes(counts[0] > 0)
    if plan.kind in ("count", "sum", "sum of three"):
        return str(sum(counts))
    if plan.kind == "difference":
        return str(counts[0] - counts[1]) if counts[0] > counts[1] else None
    if plan.kind == "together":
        return _yes(counts[0] + counts[1] > counts[2])
    return _yes(
        {"more": counts[0] > counts[1], "fewer": counts[0] < counts[1], "equal": counts[0] == counts[1]}[plan.how]
    )


def text(plan: Plan) -> str:
    """As scenes ask it, where they ask such a question."""
    names = [f"{words}s" for words in plan.words]
    if plan.kind == "walk":
        end = chain(plan)
        if plan.how == "exists":
            return f"is there a {plan.words[1]} {end}?"
        return f"what shape is {end}?" if plan.how == "shape" else f"what is the color of the shape {end}?"
    if plan.kind == "exists":
        return f"is there a {plan.words[0]}?"
    if plan.kind == "count":
        return f"how many {names[0]} are there?"
    if plan.kind == "sum":
        return f"how many {names[0]} and {names[1]} are there together?"
    if plan.kind == "sum of three":
        return f"how many {names[0]}, {names[1]} and {names[2]} are there together?"
    if plan.kind == "difference":
        return f"how many more {names[0]} than {names[1]} are there?"
    if plan.kind == "together":
        return f"are there more {names[0]} and {names[1]} together than {names[2]}?"
    if plan.how == "equal":
        return f"is the number of {names[0]} equal to the number of {names[1]}?"
    return f"are there {plan.how} {names[0]} than {names[1]}?"


def chain(plan: Plan) -> str:
    """Where a walk ends, from there back to its start: "above the shape that is left of the red circle"."""
    return " the shape that is ".join(reversed(plan.sides)) + f" the {plan.words[0]}"


def understood(question: str) -> Plan:
    """The plan of a question that scenes ask. Raises Rejection for any other."""
    said = " ".join(question.lower().split())
    if found := re.fullmatch(r"how many ([a-z ]+)s are there\?", said):
        plan = Plan("count", (found[1],))
    elif found := re.fullmatch(
        rf"(?:is there an? ([a-z ]+?)|what (?:shape is|is the (color) of the shape)) {_CHAIN}\?", said
    ):
        looked, color, first, rest, _, start = found.groups()
        sides = tuple(reversed([first, *re.findall(_SIDE, rest)]))
        plan = Plan("walk", (start, looked) if looked else (start,), "exists" if looked else color or "shape", sides)
    elif found := re.fullmatch(r"is there an? ([a-z ]+)\?", said):
        plan = Plan("exists", (found[1],))
    elif found := re.fullmatch(r"are there (more|fewer) ([a-z ]+)s than ([a-z ]+)s\?", said):
        plan = Plan("compare", (found[2], found[3]), found[1])
    elif found := re.fullmatch(r"is the number of ([a-z ]+)s equal to the number of ([a-z ]+)s\?", said):
        plan = Plan("compare", (found[1], found[2]), "equal")
    else:
        raise Rejection("nothing to ask about", f"the grounded evolver knows questions about scenes, not {question!r}")
    return Plan(plan.kind, tuple(str(read(words)) for words in plan.words), plan.how, plan.sides)


def plans(sight: Sight, steps: int) -> Iterator[tuple[Plan, str]]:
    """All plans of so many steps that have an answer here, with it. None names a pair that is held out for tests."""
    for plan in (*_walks(sight, steps - 1), *_sets(sight, steps)):
        said = answer(plan, sight)
        if said is not None:
            yield plan, said


def _walks(sight: Sight, length: int) -> Iterator[Plan]:
    if length < 1:
        return
    names = _present(sight, "color") + _present(sight, "shape")
    for start in descriptions(sight):
        if len(fitting := sight.fitting(start)) != 1:
            continue
        for sides in product(DIRECTIONS, repeat=length):
            if sight.walk(fitting[0], sides) is not None:
                yield from (Plan("walk", (start,), how, sides) for how in ("color", "shape"))
                yield from (Plan("walk", (start, name), "exists", sides) for name in names if name != start)


def _sets(sight: Sight, steps: int) -> Iterator[Plan]:
    for kind, size in PARTS.items():
        if Plan(kind, ()).steps != steps:
            continue
        if size == 1:
            yield from (Plan(kind, (words,)) for words in descriptions(sight, absent=True))
            continue
        for what in ("color", "shape"):  # of one kind, so that no thing is counted twice
            for words in permutations(_present(sight, what), size):
                if kind == "compare":
                    yield from (Plan(kind, words, how) for how in ("more", "fewer", "equal"))
                elif kind in ("difference", "together") or list(words) == sorted(words):
                    yield Plan(kind, words)


def _present(sight: Sight, what: str) -> list[str]:
    return sorted({str(Words(**{what: getattr(thing, what)})) for thing in sight.things})


def descriptions(sight: Sight, absent: bool = False) -> list[str]:
    """Of things that are there; `absent`: of all colours and shapes, and pairs whose colour and shape are there."""
    colors, shapes = {t.color for t in sight.things}, {t.shape for t in sight.things}
    pairs = product(sorted(colors), sorted(shapes)) if absent else sorted({(t.color, t.shape) for t in sight.things})
    names = [str(Words(*pair)) for pair in pairs if pair not in HELD_OUT]
    names += [str(Words(color=color)) for color in COLORS if absent or color in colors]
    return names + [str(Words(shape=shape)) for shape in SHAPES if absent or shape in shapes]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
