"""What a round did to each item: one line of `rounds/N.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from mmkd.synthesis.evolving.items import Box, Content, Direction, Version
from mmkd.synthesis.programs.tools import View


class Rejection(Exception):
    """Why a proposed version is not kept.

    Args:
        kind: a few words by which reports count; reason: in full.
        content: what was proposed, where something was.
    """

    def __init__(self, kind: str, reason: str, content: Content | None = None):
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason, self.content = kind, reason, content


class Outcome(BaseModel):
    """Of one item in one round. Round 0 holds the seeds.

    Attributes:
        index: of the seed's record; image: SHA-256 of its image.
        current: the newest good version after this round: this round's, or that of the last good round.
        kept: whether this round made a good version.
        kind, reason, candidate: of what was not kept.
        parent_difficulty: as the judge of this round saw the version compared with.
        turned: whether the judge changed its mind with the order.
    """

    model_config = ConfigDict(extra="forbid")

    item: str
    index: int
    image: str
    round: int
    current: Version
    direction: Direction | None = None
    kept: bool = False
    kind: str = ""
    reason: str = ""
    candidate: Content | None = None
    parent_difficulty: float | None = None
    turned: bool = False


@dataclass(frozen=True)
class Task:
    """An item that this round evolves.

    Attributes:
        look: opens the image as the tools see it; not kept open, since a chunk has many.
        objects: (label, box) of detections, brought with the record or, for a model that writes, found by the tools.
    """

    item: str
    round: int
    direction: Direction
    parent: Version
    image: str | bytes
    look: Callable[[], View]
    caption: str = ""
    objects: tuple[tuple[str, Box], ...] = ()

    @property
    def id(self) -> str:
        return f"{self.item}/v{self.round}"


@dataclass(frozen=True)
class Proposal:
    """What an evolver wrote for a task; see Version for the fields."""

    content: Content
    model: str | None = None
    prompt: str | None = None
    request: str | None = None
    license: str | None = None
    memo: dict[str, Any] = field(default_factory=dict)


class Evolver(Protocol):
    """Who writes the next versions. Gives the same for the same tasks; models are asked through an Asker alone."""

    def seed(self, content: Content, view: View) -> Proposal:
        """A seed as it is, with the skills, steps and memo that the evolver can tell of it."""
        ...

    def propose(self, tasks: Sequence[Task]) -> list[Proposal | Rejection]:
        """One for each task, in order."""
        ...
