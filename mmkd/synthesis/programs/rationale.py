"""A trace as short prose. The template writer says only what events hold, so nothing in it can be made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.evidence import concludes, unquoted, unsupported
from mmkd.synthesis.programs.parts import Part, Thing, is_box
from mmkd.synthesis.programs.runner import Outcome

MOST_LISTED = 6  # things of one event that are listed with their boxes
MOST_LENGTH = 1000  # characters

SIDES = {"left_of": "left of", "right_of": "right of", "above": "above", "below": "below"}
HOW = {"more": "more than", "fewer": "less than", "equal": "equal to", "at least": "at least", "at most": "at most"}

Named = Callable[[Part], str]


def rationale(outcome: Outcome, draft: str | None = None, boxes: bool = True) -> str:
    """The draft (of a writer LLM) where the outcome's events cover every claim in it and its last sentence gives the
    outcome's answer, else the template."""
    if draft is not None and 0 < len(draft.strip()) <= MOST_LENGTH:
        text = " ".join(draft.split())
        covered = not unsupported(text, outcome.events, outcome.question, outcome.answer)
        if covered and concludes(text, outcome.answer):
            return text
    return tell(outcome.events, outcome.answer, boxes)


def tell(events: Sequence[Event], answer: Any, boxes: bool = True) -> str:
    """One sentence an event, and one with the answer. Repeated calls are told once.

    Args:
        boxes: whether what is named is placed, too, by its box in pixels.
    """
    named = _placed if boxes else _unplaced
    sentences = [SENTENCES.get(event.tool, _any)(event, named) for event in events]
    return " ".join([*dict.fromkeys(sentences), f"So the answer is {_shown(answer)}."])


def _shown(value: Any) -> str:
    if is_box(value):
        return str(value)
    return as_text(value)


def _quoted(text: Any) -> str:
    """In double quotes, out of which the text cannot get."""
    return '"' + " ".join(unquoted(str(text)).split()) + '"'


def _placed(part: Part) -> str:
    box = str(list(part.box))
    return f"{_unplaced(part)} at {box}" if isinstance(part, Thing) else f"the part at {box}"


def _unplaced(part: Part) -> str:
    return f"the {unquoted(part.label)}" if isinstance(part, Thing) else "a part of the image"


def _place(event: Event, named: Named) -> str:
    return named(event.given[0]) if event.given else "the image"


def _within(event: Event, named: Named) -> str:
    return f" in {named(event.given[0])}" if event.given else ""


def _find(event: Event, named: Named) -> str:
    name, things = _quoted(event.arguments["name"]), event.found
    if not things:
        return f"There is no {name}{_within(event, named)}."
    listed = ", ".join(named(one) for one in things) if len(things) <= MOST_LISTED else ""
    verb = "is" if len(things) == 1 else "are"
    return f"There {verb} {len(things)} {name}{_within(event, named)}{': ' + listed if listed else ''}."


def _beside(event: Event, named: Named) -> str:
    where, of = SIDES[event.tool], named(event.given[0])
    if not event.found:
        return f"{_none(event)} is directly {where} {of}."  # something may stand there farther away
    return f"{_capital(named(event.found[0]))} is {where} {of}."


def _neighbours(event: Event, named: Named) -> str:
    of = named(event.given[0])
    if not event.found:
        return f"{_none(event)} is next to {of}."
    return f"Next to {of}: {', '.join(named(one) for one in event.found)}."


def _none(event: Event) -> str:
    """What was looked for and is not there; other things may be."""
    return f"No {_quoted(event.arguments['name'])}" if "name" in event.arguments else "Nothing"


def _largest(event: Event, named: Named) -> str:
    return f"The largest of these is {named(event.found[0])}." if event.found else "Nothing is the largest."


def _crop(event: Event, named: Named) -> str:
    return f"Look at {named(event.found[0])} alone."


def _distance(event: Event, named: Named) -> str:
    ends = [named(part) for part in event.given]
    between = f"between {ends[0]} and {ends[1]}" if len(ends) == 2 else "between both"
    return f"The distance {between} is {as_text(event.result)} pixels."


def _depth(event: Event, named: Named) -> str:
    return f"The depth of {_place(event, named)} is {as_text(event.result)}."


def _verify_property(event: Event, named: Named) -> str:
    what = _quoted(event.arguments["property"])
    return f"{_capital(_place(event, named))} is {what if event.result else 'not ' + what}."


def _query(event: Event, named: Named) -> str:
    return f"Asked {_quoted(event.arguments['question'])}, {_place(event, named)} gives {_quoted(event.result)}."


def _ocr(event: Event, named: Named) -> str:
    lines, place = ", ".join(map(_quoted, event.result)), _place(event, named)
    return f"The text in {place} reads {lines}." if lines else f"There is no text in {place}."


def _knowledge(event: Event, named: Named) -> str:
    return f"Asked {_quoted(event.arguments['question'])}, general knowledge gives {_quoted(event.result)}."


def _compare(event: Event, named: Named) -> str:
    first, how, second = (event.arguments[key] for key in ("first", "how", "second"))
    return f"{as_text(first)} is {'' if event.result else 'not '}{HOW[how]} {as_text(second)}."


def _calculate(event: Event, named: Named) -> str:
    return f"{_quoted(event.arguments['expression'])} is {as_text(event.result)}."


def _any(event: Event, named: Named) -> str:
    """For tools of other packages."""
    return f"{event.tool.replace('_', ' ')} gives {_quoted(as_text(event.result))}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


SENTENCES: dict[str, Callable[[Event, Named], str]] = {
    "find": _find,
    "count": _find,
    "exists": _find,
    **dict.fromkeys(SIDES, _beside),
    "neighbours": _neighbours,
    "largest": _largest,
    "crop": _crop,
    "distance": _distance,
    "depth": _depth,
    "verify_property": _verify_property,
    "query": _query,
    "ocr": _ocr,
    "knowledge": _knowledge,
    "compare": _compare,
    "calculate": _calculate,
}
