"""A plan as a version's fields: skills, steps with what the tools gave, a question in one of the task forms."""

from __future__ import annotations

import random

from mmkd.data.scene_questions import COLORS, SHAPES, Words
from mmkd.synthesis.evolving.grounded.plans import Plan, answer, chain, text
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.items import OPEN, Content, Skill, Step
from mmkd.synthesis.programs.evidence import NUMBERS

FORMS = ("multiple choice", "fill-in", "text-image match", "instruction following")
LETTERS = "abcd"


def told(plan: Plan, form: str, sight: Sight, rng: random.Random) -> Content | None:
    """None where this question has no such form."""
    right = answer(plan, sight)
    asked = None if right is None else _asked(plan, form, right, rng)
    if asked is None:
        return None
    question, said = asked
    return Content.model_validate(
        {
            "objects": list(dict.fromkeys(plan.words)), "skills": skills(plan), "steps": steps(plan, sight),
            "form": form, "question": question, "answer": said,
        }
    )  # fmt: skip


def skills(plan: Plan) -> list[Skill]:
    if plan.kind == "walk":
        return ["grounding", "referring", "relation description", *(["existence"] if plan.how == "exists" else [])]  # type: ignore[list-item]
    return ["grounding", "existence" if plan.kind == "exists" else "calculating"]


def steps(plan: Plan, sight: Sight) -> list[Step]:
    """The functions that answer it. Descriptions name no colour together with a shape: scenes hold some pairs out."""
    if plan.kind == "walk":
        (start,) = sight.fitting(plan.words[0])
        way = sight.walk(start, plan.sides)
        assert way is not None
        made = [_grounding(plan.words[0], sight)]
        what = "shape" if plan.how == "exists" and " shape" not in f" {plan.words[1]}" else plan.how
        for side, thing in zip(plan.sides, way[1:]):
            seen = thing.shape if what == "shape" else str(Words(color=thing.color))
            words = f"{side} it is a {seen}"
            made.append(
                Step(function="referring", argument="", boxes=[sight.boxes[thing]], result=seen, description=words)
            )
        return made
    made = [_grounding(words, sight) for words in plan.words]
    sums = {
        "count": ["#1"], "sum": ["#1 + #2"], "sum of three": ["#1 + #2 + #3"], "compare": ["#1 - #2"],
        "difference": ["#1 - #2"], "together": ["#1 + #2", "#4 - #3"],
    }  # fmt: skip
    values = [len(sight.fitting(words)) for words in plan.words]
    for expression in sums.get(plan.kind, []):
        terms = expression.replace("#", "").split()
        value = values[int(terms[0]) - 1]
        for sign, place in zip(terms[1::2], terms[2::2]):
            value += values[int(place) - 1] if sign == "+" else -values[int(place) - 1]
        filled = " ".join(str(values[int(term) - 1]) if term.isdigit() else term for term in terms)
        words = f"{filled} = {value}" if len(terms) > 1 else f"that makes {value}"
        made.append(Step(function="calculate", argument=expression, boxes=[], result=str(value), description=words))
        values.append(value)
    return made


def _grounding(words: str, sight: Sight) -> Step:
    found = sight.fitting(words)
    description = f"I find {len(found)} {words}" + ("" if len(found) == 1 else "s")
    boxes = [sight.boxes[thing] for thing in found]
    return Step(function="grounding", argument=words, boxes=boxes, result="", description=description)


def _asked(plan: Plan, form: str, right: str, rng: random.Random) -> tuple[str, str] | None:
    """(question, answer) in a form."""
    question, others = text(plan), _others(right)
    if form == OPEN:
        return question, right
    if form == "multiple choice" and len(others) > 1:
        options = [right, *rng.sample(others, min(len(others), 3))]
        rng.shuffle(options)
        listed = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options))
        return f"{question} choose one: {listed}", LETTERS[options.index(right)]
    if form == "fill-in" and (sentence := _sentence(plan, "___")):
        return f"fill in: {sentence}", right
    if form == "text-image match":
        true = right == "yes" if right in ("yes", "no") else rng.random() < 0.5
        sentence = _claim(plan) or _sentence(plan, right if true else rng.choice(others))
        return (f"does this sentence fit the image? {sentence}", "yes" if true else "no") if sentence else None
    if form == "instruction following":
        if right.isdigit():
            return f"{question} write the number as a word.", NUMBERS[int(right)]
        if right in ("yes", "no"):
            return f"{question} say true or false.", "true" if right == "yes" else "false"
        return f"{question} write it in capital letters.", right.upper()
    return None


def _others(right: str) -> list[str]:
    """Answers that are as likely, but wrong."""
    if right.isdigit():
        return [str(n) for n in range(max(0, int(right) - 2), int(right) + 3) if n != int(right)]
    return [one for one in (COLORS if right in COLORS else SHAPES if right in SHAPES else ()) if one != right]


def _sentence(plan: Plan, value: str) -> str | None:
    names = [f"{words}s" for words in plan.words]
    if plan.kind == "walk" and plan.how != "exists":
        return f"the {plan.how} of the shape {chain(plan)} is {value}."
    if plan.kind == "count":
        return f"the number of {names[0]} is {value}."
    if plan.kind == "sum":
        return f"{names[0]} and {names[1]} together are {value}."
    if plan.kind == "sum of three":
        return f"{names[0]}, {names[1]} and {names[2]} together are {value}."
    return f"there are {value} more {names[0]} than {names[1]}." if plan.kind == "difference" else None


def _claim(plan: Plan) -> str | None:
    """What a question for yes or no asks, as a sentence that is true if its answer is yes."""
    said = text(plan).rstrip("?")
    for ask, say in (("is there ", "there is "), ("are there ", "there are ")):
        if said.startswith(ask):
            return f"{say}{said.removeprefix(ask)}."
    if plan.how == "equal":
        return f"the number of {plan.words[0]}s is equal to the number of {plan.words[1]}s."
    return None
