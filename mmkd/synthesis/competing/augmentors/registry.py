"""What an augmentor is.

@register("again")
def again(wanted: Wanted, suffix: str = "Say why.") -> Iterator[Draft]:
    for parent in wanted.parents:
        yield Draft(parent, f"{parent.item.question} {suffix}")
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkd.errors import ConfigError
from mmkd.synthesis.competing.filters import Known
from mmkd.synthesis.competing.items import Item


@dataclass(frozen=True)
class Parent:
    """An item that a new question is made from.

    Attributes:
        hard: whether the student failed at it; then the new one asks for the same skill, else for a rarer one.
        number: of its draw, from 0; an item may be drawn several times.
        student: what the student said.
    """

    item: Item
    hard: bool
    number: int
    student: str


@dataclass(frozen=True)
class Wanted:
    """What an augmentor is asked for: one draft for each parent.

    Attributes:
        known: the questions that are in the pool.
        folder: where an augmentor keeps what it asked of models, which it opens by `competing.asking.open_role`.
    """

    parents: Sequence[Parent]
    known: Known
    folder: Path
    seed: int
    round: int
    reasks: int


@dataclass(frozen=True)
class Draft:
    """A new question on the parent's pictures, or why there is none.

    Attributes:
        reference: its answer where it is known to be right; it then fits the picture too.
        prompt: the template that it was asked for with.
        license: of the words, where a model wrote them.
        template: the augmentor's own words, where a model was asked for others; said: what it said; writer: who it is.
        objection: a few words on why the question is the template; empty where it is what the model said.
        problem: why there is no question; kind: a few words to count by.
    """

    parent: Parent
    question: str = ""
    reference: str | None = None
    task: str = ""
    prompt: str = ""
    license: str | None = None
    template: str = ""
    said: str = ""
    writer: str = ""
    objection: str = ""
    problem: str = ""
    kind: str = ""


Augmentor = Callable[..., Iterator[Draft]]

AUGMENTORS: dict[str, Augmentor] = {}


def register(name: str) -> Callable[[Augmentor], Augmentor]:
    """Makes a function the augmentor `name`; its keyword arguments are the options of the YAML."""

    def add(function: Augmentor) -> Augmentor:
        AUGMENTORS[name] = function
        return function

    return add


def augmentor(name: str) -> Augmentor:
    """Raises ConfigError with the nearest name."""
    if name not in AUGMENTORS:
        near = difflib.get_close_matches(name, AUGMENTORS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"augmentor {name!r} is not one of {', '.join(sorted(AUGMENTORS))}.{hint}")
    return AUGMENTORS[name]
