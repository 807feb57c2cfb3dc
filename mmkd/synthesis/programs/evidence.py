"""What a rationale may claim: the numbers, boxes, colours and quotations that the trace or the question holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmkd.data.scene_questions import COLORS
from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.parts import is_box

# fmt: off
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
COLOR_WORDS = frozenset((
    *COLORS, "beige", "cyan", "gold", "golden", "grey", "magenta", "maroon", "navy", "orange", "pink", "purple",
    "silver", "tan", "turquoise", "violet", "white",
))
# fmt: on
NUMBER_WORDS = {word: number for number, word in enumerate(NUMBERS)}
_BOX = re.compile(r"[\[(]\s*(-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3})\s*[\])]")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_DOUBLE_QUOTES = str.maketrans('"“”', "   ")
_WORD = re.compile(r"[^\W\d_]+")
# An apostrophe inside a word opens and closes nothing.
_QUOTED = re.compile(r"\"([^\"]*)\"|“([^”]*)”|‘([^’]*)’|(?<!\w)'([^']*)'(?!\w)")


@dataclass(frozen=True)
class Claims:
    """What a text says that can be checked."""

    numbers: frozenset[float]
    boxes: frozenset[tuple[float, ...]]
    colors: frozenset[str]
    quotes: frozenset[str]


def claims(text: str) -> Claims:
    """Numbers (in digits or words up to twenty), boxes [a, b, c, d], colour words, and what stands in quotes."""
    boxes = frozenset(_floats(found) for found in _BOX.findall(text))
    rest = _BOX.sub(" ", text)
    quotes = frozenset(_flat(next(filter(None, groups), "")) for groups in _QUOTED.findall(rest))
    words = [word.lower() for word in _WORD.findall(rest)]
    numbers = {float(found) for found in _NUMBER.findall(rest)}
    numbers |= {float(NUMBER_WORDS[word]) for word in words if word in NUMBER_WORDS}
    return Claims(
        frozenset(numbers), boxes, frozenset(_color(word) for word in words if word in COLOR_WORDS), quotes - {""}
    )


def unsupported(text: str, events: Iterable[Event], question: str, answer: Any = None) -> list[str]:
    """The claims of a text that neither events, question nor (verified) answer hold; empty where all is covered.

    A number is covered by an argument, a result, how many things an event found, or the question; a box by a box of
    an event; a colour by a label or any text there; a quotation by standing in one of these texts word for word.
    """
    events = list(events)
    made = claims(text)
    texts = [question, as_text(answer)]
    numbers: set[float] = set()
    boxes = {tuple(map(float, part.box)) for event in events for part in (*event.given, *event.found)}
    for event in events:
        numbers.add(float(len(event.found)))
        texts.append(as_text(event.result))
        texts += [part.label for part in event.found + event.given if hasattr(part, "label")]  # type: ignore[attr-defined]
        for value in _leaves([event.arguments, event.result, answer]):
            if isinstance(value, bool) or value is None:
                continue
            if isinstance(value, int | float):
                numbers |= {float(value), float(as_text(value))}  # as it is, and as it is told
            else:
                texts.append(str(value))
        boxes |= {tuple(map(float, value)) for value in _boxes([event.arguments, answer])}
    held = [claims(one) for one in texts]
    boxes = boxes.union(*(one.boxes for one in held))
    numbers = numbers.union(*(one.numbers for one in held))
    colors = frozenset().union(*(one.colors for one in held))
    plain = [f" {_flat(one)} " for one in texts]
    wrong = [f"number {number:g}" for number in sorted(made.numbers - numbers)]
    wrong += [f"box {list(box)}" for box in sorted(made.boxes - boxes)]
    wrong += [f"color {color}" for color in sorted(made.colors - colors)]
    wrong += [f"quote {quote!r}" for quote in sorted(made.quotes) if not any(f" {quote} " in one for one in plain)]
    return wrong


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list | tuple) and not is_box(value):
        for one in value:
            yield from _leaves(one)
    elif not isinstance(value, list | tuple):
        yield value


def _boxes(value: Any) -> Iterator[list[float]]:
    if is_box(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _boxes(one)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(one) for one in text.split(","))


def _color(word: str) -> str:
    return "gray" if word == "grey" else word


def unquoted(text: str) -> str:
    """Without double quotes, what stood around one apart: nothing new is read where it was."""
    return text.translate(_DOUBLE_QUOTES)


def _flat(text: str) -> str:
    """Lower case, one space between words, no double quotes, no punctuation at the ends of words."""
    return " ".join(filter(None, (word.strip(".,;:!?'‘’()[]") for word in unquoted(text).lower().split())))
