"""What a rationale may claim: the numbers, boxes, colours and quotations that the trace or the question holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ImageColor

from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.synthesis.programs.answers import as_text, is_number
from mmkd.synthesis.programs.counting import numbers_in
from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.parts import is_box

COLOR_WORDS = frozenset((
    *COLORS, *ImageColor.colormap, "amber", "bronze", "burgundy", "carmine", "cerulean", "charcoal", "copper", "cream",
    "emerald", "golden", "lilac", "mauve", "mustard", "ochre", "peach", "rose", "ruby", "rust", "scarlet",
    "ultramarine", "vermilion",
))  # fmt: skip
_BOX = re.compile(r"[\[(]\s*(-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3})\s*[\])]")
_DOUBLE_QUOTES = str.maketrans(dict.fromkeys('"“”„‟«»‹›「」『』〝〞＂`‚', " "))
_WORD = re.compile(r"[^\W\d_]+")
# An apostrophe inside a word opens and closes nothing.
_QUOTED = re.compile(
    r"\"([^\"]*)\"|[“„‟]([^“”]*)[“”]|«([^»]*)»|»([^«]*)«|‹([^›]*)›|「([^」]*)」|『([^』]*)』|`+([^`]*)`+|＂([^＂]*)＂"
    r"|‚([^‘]*)‘|‘([^’]*)’|(?<!\w)'([^']*)'(?!\w)"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_NOT = frozenset(("no", "not", "none", "never", "neither", "nor", "nothing", "without", "cannot", "wrong", "false"))
_KINDS: tuple[frozenset[str], ...] = (frozenset(("yes", "no")), frozenset(SHAPES))  # answers that exclude each other


@dataclass(frozen=True)
class Claims:
    """What a text says that can be checked."""

    numbers: frozenset[float]
    boxes: frozenset[tuple[float, ...]]
    colors: frozenset[str]
    quotes: frozenset[str]


def claims(text: str) -> Claims:
    """Numbers (see counting.py), boxes [a, b, c, d], colour words, and what stands in quotes."""
    boxes = frozenset(_floats(found) for found in _BOX.findall(text))
    rest = _BOX.sub(" ", text)
    quotes = frozenset(_flat(next(filter(None, groups), "")) for groups in _QUOTED.findall(rest))
    words = [word.lower() for word in _WORD.findall(rest)]
    colors = frozenset(_color(word) for word in words if word in COLOR_WORDS)
    return Claims(numbers_in(unquoted(rest)), boxes, colors, quotes - {""})


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


def concludes(text: str, answer: Any) -> bool:
    """Whether the last sentence of a text gives the answer: it holds it, negates nothing, and names no other number,
    colour, shape, yes or no where the answer is one."""
    last, said = _SENTENCE.split(text.strip())[-1], as_text(answer)
    words, meant = _flat(last).split(), _flat(said).split()
    found, needed = claims(last), claims(said)
    if {"not" if word.endswith(("n't", "n’t")) else word for word in words} & _NOT - set(meant):
        return False
    if needed.boxes or is_box(answer):
        return found.boxes == (needed.boxes or {tuple(map(float, answer))})
    if needed.numbers and found.numbers != needed.numbers:
        return False
    if needed.colors and found.colors != needed.colors:
        return False
    if any(kind & set(meant) and kind & set(words) != kind & set(meant) for kind in _KINDS):
        return False
    digits = is_number(said)  # which words may stand for
    return digits or (bool(meant) and f" {' '.join(meant)} " in f" {' '.join(words)} ")


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
    return word.replace("grey", "gray")


def unquoted(text: str) -> str:
    """Without quotation marks other than apostrophes, what stood around one apart: nothing new is read where it was."""
    return text.translate(_DOUBLE_QUOTES)


def _flat(text: str) -> str:
    """Lower case, one space between words, no double quotes, no punctuation at the ends of words."""
    return " ".join(filter(None, (word.strip(".,;:!?'‘’()[]") for word in unquoted(text).lower().split())))
