"""The examples in a writer's prompt, those most like the question: ours, and programs of the writer that held."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import yaml

from mmkd.synthesis.programs.checker import ProgramError, check
from mmkd.synthesis.programs.tools.registry import Toolset

FILE = Path(__file__).parents[1] / "examples.yaml"


@dataclass(frozen=True)
class Example:
    question: str
    program: str


@cache
def examples() -> tuple[int, tuple[Example, ...]]:
    """The version of the file, and what stands in it."""
    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read["version"], tuple(Example(one["question"], one["program"].strip()) for one in read["examples"])


class Nearest:
    """Picks examples by the words and pairs of words that they share with a question, rare ones counting more: their
    share in the words of both (weighted Jaccard), so that an example which says more than the question stands behind.

    Args:
        tools: examples that need another tool are left out.
        count: how many; fewer where there are no more.
        held: further ones, which are known to run.
    """

    def __init__(self, tools: Toolset, count: int, held: Sequence[Example] = ()):
        self.version, every = examples()
        self.count, self.kept = count, [*(one for one in every if _runs(one, tools)), *held]
        self._known = [_terms(one.question) for one in self.kept]
        self._frequency = Counter(term for terms in self._known for term in terms)

    def __call__(self, question: str) -> list[Example]:
        """The most alike last, next to the question; of equals, those that stand first in the file."""
        asked = _terms(question)
        likeness = [self._mass(asked & known) / self._mass(asked | known) for known in self._known]
        nearest = sorted(range(len(self.kept)), key=lambda place: -likeness[place])[: self.count]
        return [self.kept[place] for place in reversed(nearest)]

    def _mass(self, terms: set[str]) -> float:
        return sum(math.log((1 + len(self.kept)) / (self._frequency[term] or 1)) ** 2 for term in terms)


def _terms(question: str) -> set[str]:
    words = re.findall(r"\w+", question.lower())
    return {*words, *(f"{one} {other}" for one, other in pairwise(words))}


def _runs(example: Example, tools: Toolset) -> bool:
    try:
        check(example.program, tools)
    except ProgramError:
        return False
    return True
