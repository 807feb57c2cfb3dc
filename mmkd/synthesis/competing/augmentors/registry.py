"""What an augmentor is.

@register("again")
def again(wanted: Wanted, suffix: str = "Say why.") -> Iterator[Draft]:
    for parent in wanted.parents:
        yield Draft(parent, f"{parent.item.question} {suffix}")

In a package of its own, an entry point of the group `mmkd.augmentors` makes it known to the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.competing.asking import open_role
from mmkd.synthesis.competing.filters import Known
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.paid import Purse
from mmkd.synthesis.plugins import by_name


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
        folder: where an augmentor keeps what it asked of models, which it opens by `open`.
        purse: what models were paid there.
    """

    parents: Sequence[Parent]
    known: Known
    folder: Path
    seed: int
    round: int
    reasks: int
    purse: Purse | None = None

    def open(self, model: ModelSection, role: str) -> Asker:
        """A model, with its store in `folder`/`role`; to be closed, or used in a `with`. Several may be open at once,
        each in a role of its own. Raises as `open_asker`."""
        return open_role(model, self.folder, role, self.reasks, self.purse)


@dataclass(frozen=True)
class Draft:
    """A new question on the parent's pictures, or why there is none.

    Attributes:
        reference: its answer where it is known to be right; it then fits the picture too. Without one, no label can
            score the answers to it: the config needs a judge model.
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
# The config and the augmentor's own options, as keyword arguments have them; raises ConfigError for what cannot run.
Check = Callable[[CompeteConfig, dict[str, Any]], None]

GROUP = "mmkd.augmentors"
AUGMENTORS: dict[str, Augmentor] = {}
CHECKS: dict[Augmentor, Check] = {}


def register(name: str, check: Check | None = None) -> Callable[[Augmentor], Augmentor]:
    """Makes a function the augmentor `name`; its keyword arguments are the options of the YAML.

    Args:
        check: called before anything is trained or asked, for what the types of the options do not say.
    """

    def add(function: Augmentor) -> Augmentor:
        AUGMENTORS[name] = function
        if check is not None:
            CHECKS[function] = check
        return function

    return add


def augmentor(name: str) -> Augmentor:
    """The packaged, registered or installed augmentor of that name. Raises ConfigError with the nearest name."""
    return by_name(name, "augmentor", AUGMENTORS, GROUP)
