"""A plan's question as sentences."""

from __future__ import annotations

from mmkd.synthesis.evolving.grounded.plans import Plan, chain, text


def sentence(plan: Plan, value: str) -> str | None:
    """What the answer `value` says; None of a question for yes or no."""
    names = plurals(plan)
    if plan.kind == "walk" and plan.how != "exists":
        return f"the {plan.how} of the shape {chain(plan)} is {value}."
    if plan.kind == "count":
        return f"the number of {names[0]} is {value}."
    if plan.kind == "sum":
        return f"{names[0]} and {names[1]} together are {value}."
    if plan.kind == "sum of three":
        return f"{names[0]}, {names[1]} and {names[2]} together are {value}."
    return f"there are {value} more {names[0]} than {names[1]}." if plan.kind == "difference" else None


def claim(plan: Plan) -> str | None:
    """What a question for yes or no asks, as a sentence that is true if its answer is yes."""
    said = text(plan).rstrip("?")
    for ask, say in (("is there ", "there is "), ("are there ", "there are ")):
        if said.startswith(ask):
            return f"{say}{said.removeprefix(ask)}."
    if plan.how == "equal":
        return f"the number of {plan.words[0]}s is equal to the number of {plan.words[1]}s."
    return None


def referring_back(plan: Plan) -> str:
    """What is looked at in one sentence, and asked of by a pronoun in the next."""
    names = plurals(plan)
    if plan.kind == "walk":
        *before, last = plan.sides
        ends = ["it", *["that one"] * len(before)]
        looks = [f"at the {plan.words[0]}", *(f"then at the shape {side} {end}" for side, end in zip(before, ends))]
        look, end = ", ".join(looks), f"{last} {ends[-1]}"
        if plan.how == "exists":
            return f"look {look}. is there a {plan.words[1]} {end}?"
        return f"look {look}. what {'shape is' if plan.how == 'shape' else 'is the color of the shape'} {end}?"
    if plan.kind == "exists":
        return f"think of a {plan.words[0]}. is there one in the image?"
    if plan.kind == "count":
        return f"look for {names[0]}. how many of them are there?"
    if plan.kind == "sum of three":
        return f"look at the {names[0]}, the {names[1]} and the {names[2]}. how many of all these are there together?"
    if plan.kind == "together":
        look = f"look at the {names[0]}, the {names[1]} and, last, the {names[2]}"
        return f"{look}. are there more of the others together than of the last?"
    asks = {
        "sum": "how many of both are there together?",
        "difference": "how many more of the former than of the latter are there?",
        "compare": "are there as many of the former as of the latter?"
        if plan.how == "equal"
        else f"are there {plan.how} of the former than of the latter?",
    }[plan.kind]
    return f"look at the {names[0]} and the {names[1]}. {asks}"


def plurals(plan: Plan) -> list[str]:
    return [f"{words}s" for words in plan.words]
