"""The task forms of interaction evolution that tools can make true on scenes: 12 of MMEvol's 17.

A form asks a plan's question in another way, or for something else of what the plan's steps look at. Each has one right
answer, which follows from what the tools see. The other five have none here: image style, art type and text detection
would have the same answer for every scene, depth order none on a flat one, creative no single one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.synthesis.evolving.grounded.form import Asked, Case, one_of
from mmkd.synthesis.evolving.grounded.languages import LANGUAGES
from mmkd.synthesis.evolving.grounded.placed import completeness, matching, missing, nearer, region
from mmkd.synthesis.evolving.grounded.plans import Plan, text
from mmkd.synthesis.evolving.grounded.sentences import claim, plurals, referring_back, sentence
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.grounded.steps import finding, seen_of, sums, way_of
from mmkd.synthesis.evolving.items import OPEN
from mmkd.synthesis.programs.counting import NUMBERS


def asked(plan: Plan, form: str, right: str, sight: Sight, rng: random.Random) -> Asked | None:
    """The question in a form, `right` being the plan's answer; None where this one has no such form."""
    if form == OPEN:
        return Asked(text(plan), right)
    return MAKERS[form](Case(plan, right, sight, rng))


def _choice(case: Case) -> Asked | None:
    wrong = _others(case.right)
    return one_of(case, f"{text(case.plan)} choose one:", case.right, wrong) if len(wrong) > 1 else None


def _fill_in(case: Case) -> Asked | None:
    gap = sentence(case.plan, "___")
    return Asked(f"fill in: {gap}", case.right) if gap else None


def _fits(case: Case) -> Asked | None:
    right, plan, rng = case.right, case.plan, case.rng
    true = right == "yes" if right in ("yes", "no") else rng.random() < 0.5
    said = claim(plan) or sentence(plan, right if true else rng.choice(_others(right)))
    return Asked(f"does this sentence fit the image? {said}", "yes" if true else "no") if said else None


def _instructed(case: Case) -> Asked:
    """One of the ways of answering that the question allows."""
    plan, right = case.plan, case.right
    value = int(right) if right.isdigit() else {"yes": True, "no": False}.get(right, right)
    as_json = 'reply in JSON, as {"answer": ...}'
    if right.isdigit():
        ways = [("write the number as a word.", NUMBERS[int(right)]), (f"{as_json}, with a number.", value)]
    elif right in ("yes", "no"):
        ways = [("say true or false.", "true" if value else "false"), (f"{as_json}, with true or false.", value)]
    else:
        ways = [("write it in capital letters.", right.upper()), (f"{as_json}, with a string.", value)]
    found = [
        Asked(f"{text(plan)} {how}", json.dumps({"answer": said}) if how.startswith(as_json) else str(said))
        for how, said in ways
    ]
    if plan.kind != "walk" and len(plan.words) > 1:
        found += _ordered(case)
    return case.rng.choice(found)


def _ordered(case: Case) -> list[Asked]:
    """Of several kinds of things: a table of their numbers, and, where all differ, their order."""
    counts = {name: len(case.sight.fitting(words)) for name, words in zip(plurals(case.plan), case.plan.words)}
    listed = ", ".join(counts)
    table = "\n".join(f"{name}: {count}" for name, count in counts.items())
    found = [Asked(f"how many of each are there: {listed}? write a line for each, as name: number.", table)]
    if len(set(counts.values())) == len(counts):
        order = ", ".join(sorted(counts, key=counts.__getitem__))
        found.append(Asked(f"put these in order, the fewest in the image first: {listed}.", order))
    return found


def _reasons(case: Case) -> Asked | None:
    """Which chain of steps is true, among some that differ from it in what is seen."""
    plan, sight = case.plan, case.sight
    if plan.kind == "walk":
        seen = [seen_of(plan, thing) for thing in way_of(plan, sight)[1:]]
        changed = [
            [*seen[:place], other, *seen[place + 1 :]] for place, one in enumerate(seen) for other in _alike(one)
        ]
        true, *wrong = (
            "; ".join([finding(plan.words[0], 1), *(f"{side} it is a {what}" for side, what in zip(plan.sides, one))])
            for one in (seen, *changed)
        )
    else:
        counts = [len(sight.fitting(words)) for words in plan.words]
        changed = [
            [*counts[:place], other, *counts[place + 1 :]]
            for place, one in enumerate(counts)
            for other in (one - 1, one + 1, one + 2)
            if other >= 0
        ]
        true, *wrong = (_reckoned(plan, one) for one in (counts, *changed))
    return one_of(case, f"which reasoning about this question fits the image? {text(plan)}", true, wrong, most=3)


def _reckoned(plan: Plan, counts: list[int]) -> str:
    said = [finding(words, count) for words, count in zip(plan.words, counts)]
    return "; ".join([*said, *(f"{filled} = {value}" for form, filled, value in sums(plan, counts) if " " in form)])


def _translated(case: Case) -> Asked | None:
    known = [language for language, words in LANGUAGES.items() if case.right in words]
    if not known:
        return None
    language = case.rng.choice(known)
    how = "say the number as a word of" if case.right.isdigit() else "answer with a word of"
    return Asked(f"{text(case.plan)} {how} {language}.", LANGUAGES[language][case.right])


def _of_them(case: Case) -> Asked:
    return Asked(referring_back(case.plan), case.right)


def _others(right: str) -> list[str]:
    """Answers that are as likely, but wrong."""
    if right.isdigit():
        return [str(n) for n in range(max(0, int(right) - 2), int(right) + 3) if n != int(right)]
    return [one for one in (COLORS if right in COLORS else SHAPES if right in SHAPES else ()) if one != right]


def _alike(seen: str) -> list[str]:
    """Other colours of a "red shape", other shapes of a "circle"."""
    color, _, shape = seen.partition(" ")
    return [f"{one} {shape}" for one in COLORS if one != color] if shape else _others(seen)


MAKERS: dict[str, Callable[[Case], Asked | None]] = {
    "multiple choice": _choice,
    "fill-in": _fill_in,
    "text-image match": _fits,
    "instruction following": _instructed,
    "region selection": region,
    "missing object": missing,
    "object-region match": matching,
    "completeness check": completeness,
    "rationale": _reasons,
    "translation": _translated,
    "coreference": _of_them,
    "relative distance": nearer,
}
FORMS = tuple(MAKERS)
