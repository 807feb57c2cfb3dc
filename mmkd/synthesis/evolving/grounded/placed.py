"""Task forms about where things are: regions are boxes that the detector found."""

from __future__ import annotations

from mmkd.data.scene_questions import Thing
from mmkd.synthesis.evolving.grounded.form import LETTERS, Asked, Case, lettered, one_of
from mmkd.synthesis.evolving.grounded.plans import chain, descriptions
from mmkd.synthesis.evolving.grounded.sight import Sight, read
from mmkd.synthesis.evolving.grounded.steps import grounding, way_of
from mmkd.synthesis.evolving.items import Box, Step

CLEARLY = 1.25  # times as far, by the middles of boxes: what people would call farther, wherever in a thing they look
MOST_LISTED = 6


def region(case: Case) -> Asked | None:
    """The region of what a walk ends at, or of a thing that is asked for."""
    plan, sight = case.plan, case.sight
    if plan.kind == "walk":
        shown, right = f"the shape {chain(plan)}", [way_of(plan, sight)[-1]]
    elif plan.kind == "exists":
        shown, right = f"a {plan.words[0]}", sight.fitting(plan.words[0])
    else:
        return None
    wrong = [boxed(sight, thing) for thing in sight.things if thing not in right]
    if not right or not wrong:
        return None
    return one_of(case, f"which region shows {shown}?", boxed(sight, case.rng.choice(right)), wrong)


def matching(case: Case) -> Asked | None:
    """The regions of all things on a walk, and of one more."""
    plan, sight = case.plan, case.sight
    if plan.kind != "walk":
        return None
    way = way_of(plan, sight)
    off = [thing for thing in sight.things if thing not in way]
    shown = [*way, *case.rng.sample(off, min(1, len(off)))]
    case.rng.shuffle(shown)
    if len(shown) > len(LETTERS):
        return None
    names = [f"the {plan.words[0]}"]
    for side in plan.sides:
        names.append(f"the shape {side} {names[-1]}")
    options = lettered([boxed(sight, thing) for thing in shown])
    question = f"match with regions, in this order: {'; '.join(names)}. name a letter for each: {options}"
    return Asked(question, ", ".join(LETTERS[shown.index(thing)] for thing in way))


def completeness(case: Case) -> Asked | None:
    """Whether some regions are all that show such things, or one is left out."""
    plan, sight = case.plan, case.sight
    if plan.kind not in ("exists", "count", "sum", "sum of three"):
        return None
    things = list(dict.fromkeys(thing for words in plan.words for thing in sight.fitting(words)))
    if not 0 < len(things) <= MOST_LISTED:
        return None
    case.rng.shuffle(things)
    whole = len(things) == 1 or case.rng.random() < 0.5
    listed = "; ".join(boxed(sight, thing) for thing in (things if whole else things[1:]))
    shown = " or ".join(f"a {words}" for words in plan.words)
    return Asked(f"are these all regions that show {shown}, none left out? {listed}", "yes" if whole else "no")


def missing(case: Case) -> Asked | None:
    """Which of some descriptions of one kind fits nothing; two more than the plan has steps, so that harder plans stay
    harder."""
    plan, sight, rng = case.plan, case.sight, case.rng
    if plan.kind == "walk":
        return None
    named = list(dict.fromkeys(plan.words))
    left = [words for words in descriptions(sight, absent=True) if _kind(words) == _kind(named[0])]
    left = [words for words in left if words not in named]
    absent = [words for words in named if not sight.fitting(words)]
    if not absent:
        absent = rng.sample(none := [words for words in left if not sight.fitting(words)], min(1, len(none)))
    present = [words for words in left if sight.fitting(words)]
    more = plan.steps + 2 - len({*named, *absent})
    if len(absent) != 1 or not 0 <= more <= len(present):
        return None
    options = [*dict.fromkeys([*named, *absent]), *rng.sample(present, more)]
    rng.shuffle(options)
    found = tuple(grounding(words, sight) for words in options)
    question = f"which of these is not in the image: {', '.join(options[:-1])} or {options[-1]}?"
    return Asked(question, absent[0], steps=found, objects=tuple(options))


def nearer(case: Case) -> Asked | None:
    """Which of two things is nearer to what a walk ends at, where this is clear."""
    plan, sight = case.plan, case.sight
    if plan.kind != "walk" or plan.how == "exists":
        return None
    end = way_of(plan, sight)[-1]
    names: dict[Thing, list[str]] = {}
    for words in descriptions(sight):
        if len(fitting := sight.fitting(words)) == 1 and fitting[0] != end and words != plan.words[0]:
            names.setdefault(fitting[0], []).append(words)
    pairs = [(near, far) for near in names for far in names if _clearly(sight, end, near, far)]
    if not pairs:
        return None
    near, far = (case.rng.choice(names[thing]) for thing in case.rng.choice(pairs))
    options = [near, far]
    case.rng.shuffle(options)
    found = [grounding(words, sight) for words in options]
    found += [_measured(sight, end, words) for words in options]
    question = f"which is nearer to the shape {chain(plan)}: the {options[0]} or the {options[1]}?"
    objects = (plan.words[0], *options)
    return Asked(question, f"the {near}", more=tuple(found), objects=objects, skills=("calculating",))


def _clearly(sight: Sight, end: Thing, near: Thing, far: Thing) -> bool:
    """By the middles of their boxes, and by the cells they stand in."""
    cells = [(one.row - end.row) ** 2 + (one.column - end.column) ** 2 for one in (near, far)]
    boxes = [_squared(sight.boxes[end], sight.boxes[one]) for one in (near, far)]
    return cells[0] < cells[1] and boxes[0] * CLEARLY**2 <= boxes[1]


def _measured(sight: Sight, end: Thing, words: str) -> Step:
    (thing,) = sight.fitting(words)
    (ax, ay), (bx, by) = middle(sight.boxes[end]), middle(sight.boxes[thing])
    expression = f"({ax} - {bx}) * ({ax} - {bx}) + ({ay} - {by}) * ({ay} - {by})"
    value = f"{_squared(sight.boxes[end], sight.boxes[thing]):.6f}"
    told = f"the {words} is {float(value) ** 0.5:.2f} of the image's width away"
    return Step(function="calculate", argument=expression, boxes=[], result=value, description=told)


def _squared(one: Box, other: Box) -> float:
    (ax, ay), (bx, by) = middle(one), middle(other)
    return (ax - bx) ** 2 + (ay - by) ** 2


def middle(box: Box) -> tuple[float, float]:
    return round((box[0] + box[2]) / 2, 4), round((box[1] + box[3]) / 2, 4)


def boxed(sight: Sight, thing: Thing) -> str:
    """As shares of width and height, from the left and the top."""
    return f"[{', '.join(f'{side:.2f}' for side in sight.boxes[thing])}]"


def _kind(words: str) -> tuple[bool, bool]:
    one = read(words)
    return one.color is not None, one.shape is not None
