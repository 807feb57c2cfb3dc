"""What answers: the one interface of served and in-process models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from mmkd.data.records import Turn
from mmkd.synthesis.requests import Completion, Sampling, Usage


@dataclass(frozen=True)
class Call:
    """One call of a back end: a request's turns, or those with a word on what was wrong with the last reply.

    Attributes:
        id: the same for a call that is sent again because nothing came back, different for every other.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str | bytes, ...]
    sampling: Sampling
    schema: type[BaseModel] | None = None


class Backend(Protocol):
    """A model that completes chats. Safe for `concurrency` calls at once, in one event loop.

    Attributes:
        model: its identity: answers are stored under it, so it changes whenever the weights do.
        license: of what it writes.
        extra_body: see `EndpointSection.beside`; empty for a model of this process.
        concurrency: calls that keep it busy.
    """

    model: str
    license: str | None
    extra_body: dict[str, Any]
    concurrency: int

    async def complete(self, call: Call) -> Completion:
        """Raises: NoReply where nothing came back (all retries spent), Refused for a call that it does not take,
        BudgetSpent before a call that the budget does not cover, ConfigError where no call can succeed."""
        ...

    async def close(self) -> None: ...


class NoReply(Exception):
    """Nothing usable came back: asked again by the next run.

    Attributes:
        lost: see `Completion`.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind, self.lost = kind, Usage()


class Refused(Exception):
    """The back end does not take this call: too long, a broken image, a field that it does not know.

    Attributes:
        lost: see `Completion`.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind, self.lost = kind, Usage()


def with_images_first(turns: Sequence[Turn], images: int) -> list[tuple[Turn, int]]:
    """(turn, images before its text): all images stand in the first user turn."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    return [(turn, images if i == first else 0) for i, turn in enumerate(turns)]
