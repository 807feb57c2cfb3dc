"""The examples in a writer's prompt: our own, those most like the question."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer

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
    """Picks examples by cosine similarity of TF-IDF over words and pairs of words.

    Args:
        tools: examples that need another tool are left out.
        count: how many; fewer where there are no more.
    """

    def __init__(self, tools: Toolset, count: int):
        self.version, every = examples()
        self.count, self.kept = count, [one for one in every if _runs(one, tools)]
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True)
        self._known = self._vectors.fit_transform([one.question for one in self.kept]) if self.kept else None

    def __call__(self, question: str) -> list[Example]:
        """The most alike last, next to the question; of equals, those that stand first in the file."""
        if self._known is None or not self.count:
            return []
        likeness = (self._known @ self._vectors.transform([question]).T).toarray()[:, 0]
        nearest = np.argsort(-likeness, kind="stable")[: self.count]
        return [self.kept[place] for place in reversed(nearest)]


def _runs(example: Example, tools: Toolset) -> bool:
    try:
        check(example.program, tools)
    except ProgramError:
        return False
    return True
