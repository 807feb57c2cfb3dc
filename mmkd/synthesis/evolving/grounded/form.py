"""What a task form is given, and what it makes of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmkd.synthesis.evolving.grounded.plans import Plan
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.items import Skill, Step

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Case:
    """A plan in a scene.

    Attributes:
        right: the plan's answer there; rng: draws options.
    """

    plan: Plan
    right: str
    sight: Sight
    rng: random.Random


@dataclass(frozen=True)
class Asked:
    """A question with its one right answer.

    Attributes:
        steps: in the place of the plan's, where there are any; more: after the plan's.
        objects: in the place of the plan's words, where there are any; skills: beside the plan's.
    """

    question: str
    answer: str
    steps: tuple[Step, ...] = ()
    more: tuple[Step, ...] = ()
    objects: tuple[str, ...] = ()
    skills: tuple[Skill, ...] = ()


def lettered(options: Sequence[str]) -> str:
    return " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options))


def one_of(case: Case, asks: str, right: str, wrong: Sequence[str], most: int = 4) -> Asked:
    """A question with the right option and some wrong ones, in any order; the answer is a letter."""
    options = [right, *case.rng.sample(list(wrong), min(len(wrong), most - 1))]
    case.rng.shuffle(options)
    return Asked(f"{asks} {lettered(options)}", LETTERS[options.index(right)])
