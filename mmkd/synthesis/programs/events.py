"""The trace: one event for each tool call, written by the tool server and by nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mmkd.synthesis.programs.parts import Part, part_of


@dataclass(frozen=True)
class Event:
    """One tool call.

    Attributes:
        call: 0 for the program's first call, then 1, ..
        arguments: by parameter name, as the program gave them; parts of the picture are handles.
        result: as the program got it.
        given: the parts of the picture among the arguments, without the whole picture.
        found: the parts of the picture that the result speaks of; for count, the things counted.
        grounded: whether the tool looked at the picture.
        seconds: how long the tool took.
    """

    call: int
    tool: str
    version: int
    arguments: dict[str, Any]
    result: Any
    given: tuple[Part, ...] = ()
    found: tuple[Part, ...] = ()
    grounded: bool = False
    seconds: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Event:
        """Of what `to_dict` gave, through JSON or not."""
        return cls(**{**row, "given": tuple(map(part_of, row["given"])), "found": tuple(map(part_of, row["found"]))})
