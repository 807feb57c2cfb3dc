"""Questions about a scene whose answers follow from its list of things.

Every question type lists all the questions it could ask of a scene, each with its true answer; `ask` then picks among
them so that answers are balanced. Directions mean the neighbouring cell: "left of the red circle" is the cell that
touches it on the left, in the same row. A thing is only referred to by a description that fits nothing else there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (row, column) steps

# One shape of each colour. No training or validation question names these pairs ("the red triangle", "how many black
# circles ..."), though the colours, the shapes and the things themselves are seen in training; test questions do.
HELD_OUT = frozenset(
    {
        ("black", "circle"),
        ("blue", "rectangle"),
        ("brown", "triangle"),
        ("gray", "circle"),
        ("green", "rectangle"),
        ("red", "triangle"),
        ("teal", "circle"),
        ("yellow", "rectangle"),
    }
)


@dataclass(frozen=True)
class Thing:
    """One coloured shape in one cell, drawn by the EasyVQA image at `image`."""

    row: int
    column: int
    color: str
    shape: str
    image: str


@dataclass(frozen=True)
class Words:
    """A description such as "red circle", "red shape" (any shape) or "circle" (any colour)."""

    color: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        return self.color in (None, thing.color) and self.shape in (None, thing.shape)

    @property
    def held_out(self) -> bool:
        return (self.color, self.shape) in HELD_OUT

    def __str__(self) -> str:
        return " ".join(filter(None, (self.color, self.shape or "shape")))


@dataclass(frozen=True)
class Question:
    """A question with its true answer.

    Attributes:
        type: count, existence, comparison, spatial or two_hop.
        form: the wording within the type; answers are balanced inside a form.
        unseen: whether it names a held-out pair of colour and shape.
    """

    text: str
    answer: str
    type: str
    form: str
    unseen: bool


# What a question type yields: form, text, answer, descriptions named.
Drafts = Iterator[tuple[str, str, str, tuple[Words, ...]]]

BY_COLOR = [Words(color=color) for color in COLORS]
BY_SHAPE = [Words(shape=shape) for shape in SHAPES]
BY_BOTH = [Words(color, shape) for color, shape in product(COLORS, SHAPES)]
DESCRIPTIONS = {"color": BY_COLOR, "shape": BY_SHAPE, "both": BY_BOTH}


def _number(words: Words, things: list[Thing]) -> int:
    return sum(map(words.fits, things))


def _truth(value: bool) -> str:
    return "yes" if value else "no"


def _count(things: list[Thing]) -> Drafts:
    for form, descriptions in DESCRIPTIONS.items():
        for words in descriptions:
            yield form, f"how many {words}s are there?", str(_number(words, things)), (words,)


def _existence(things: list[Thing]) -> Drafts:
    colors, shapes = {t.color for t in things}, {t.shape for t in things}
    for form, descriptions in DESCRIPTIONS.items():
        for words in descriptions:
            # "no red circle" is only worth asking where there is something red and some circle.
            if form != "both" or (words.color in colors and words.shape in shapes):
                yield form, f"is there a {words}?", _truth(_number(words, things) > 0), (words,)


def _comparison(things: list[Thing]) -> Drafts:
    for form in ("color", "shape"):
        present = [words for words in DESCRIPTIONS[form] if _number(words, things)]
        for one, other in permutations(present, 2):
            a, b, named = _number(one, things), _number(other, things), (one, other)
            yield f"more {form}", f"are there more {one}s than {other}s?", _truth(a > b), named
            yield f"fewer {form}", f"are there fewer {one}s than {other}s?", _truth(a < b), named
            equal = f"is the number of {one}s equal to the number of {other}s?"
            yield f"equal {form}", equal, _truth(a == b), named


def _references(things: list[Thing]) -> Iterator[tuple[Words, Thing]]:
    """Each description that fits exactly one thing, with that thing."""
    for thing in things:
        for words in (Words(thing.color, thing.shape), Words(color=thing.color), Words(shape=thing.shape)):
            if _number(words, things) == 1:
                yield words, thing


def _neighbours(things: list[Thing], of: Thing) -> Iterator[tuple[str, Thing | None]]:
    cells = {(t.row, t.column): t for t in things}
    for name, (down, right) in DIRECTIONS.items():
        yield name, cells.get((of.row + down, of.column + right))


def _spatial(things: list[Thing]) -> Drafts:
    present = [words for words in BY_COLOR + BY_SHAPE if _number(words, things)]
    for reference, thing in _references(things):
        for where, neighbour in _neighbours(things, thing):
            if neighbour:
                yield "shape", f"what shape is {where} the {reference}?", neighbour.shape, (reference,)
                text = f"what is the color of the shape {where} the {reference}?"
                yield "color", text, neighbour.color, (reference,)
                for words in present:
                    text = f"is there a {words} {where} the {reference}?"
                    yield "existence", text, _truth(words.fits(neighbour)), (words, reference)


def _two_hop(things: list[Thing]) -> Drafts:
    for reference, start in _references(things):
        for first, middle in _neighbours(things, start):
            for second, end in _neighbours(things, middle) if middle else ():
                if end and end != start:  # there and back again would ask about the reference itself
                    chain = f"{second} the shape that is {first} the {reference}?"
                    yield "shape", f"what shape is {chain}", end.shape, (reference,)
                    yield "color", f"what is the color of the shape {chain}", end.color, (reference,)


TYPES: dict[str, Callable[[list[Thing]], Drafts]] = {
    "count": _count,
    "existence": _existence,
    "comparison": _comparison,
    "spatial": _spatial,
    "two_hop": _two_hop,
}


def ask(
    things: list[Thing], number: int, rng: random.Random, held_out: bool, types: Sequence[str] | None = None
) -> list[Question]:
    """Up to `number` different questions, the types taking turns; fewer only where the scene has no more to ask.

    A form is asked only where the scene offers it at least two different answers, and the answer is drawn before the
    question: so the wording tells as little as possible about the answer.

    Args:
        held_out: True allows questions that name a held-out pair (test), False forbids them (train, validation).
        types: which ones; None for all.
    """
    turns = [name for name in TYPES if types is None or name in types]
    every = offers(things, held_out)
    offered = {name: every[name] for name in turns}
    asked: list[Question] = []
    rng.shuffle(turns)
    while len(asked) < number and any(offered.values()):
        for name in turns:
            if offered[name] and len(asked) < number:
                asked.append(_draw(offered[name], rng))
    return asked


def offers(things: list[Thing], held_out: bool) -> dict[str, dict[str, dict[str, list[Question]]]]:
    """Every question of a scene, by type, form and answer; only forms with at least two different answers.

    Args:
        held_out: as for `ask`.
    """
    found: dict[str, dict[str, dict[str, list[Question]]]] = {}
    for name, drafts in TYPES.items():
        forms: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
        for form, text, answer, named in drafts(things):
            unseen = any(words.held_out for words in named)
            if held_out or not unseen:
                forms[form][answer].append(Question(text, answer, name, form, unseen))
        found[name] = {form: answers for form, answers in forms.items() if len(answers) > 1}
    return found


def _draw(forms: dict[str, dict[str, list[Question]]], rng: random.Random) -> Question:
    """Takes one question out: a form at random, then an answer, then a question. Removes what is used up."""
    form = rng.choice(sorted(forms))
    answers = forms[form]
    answer = rng.choice(sorted(answers))
    question = answers[answer].pop(rng.randrange(len(answers[answer])))
    if not answers[answer]:
        del answers[answer]
    if not answers:
        del forms[form]
    return question
