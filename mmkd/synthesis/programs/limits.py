"""What one program may use."""

from __future__ import annotations

from dataclasses import dataclass

from mmkd.config.programs_schema import LimitsSection


@dataclass(frozen=True)
class Limits:
    """Limits of one run. Whatever goes over one ends that program and nothing else.

    Attributes:
        seconds: of computing inside the sandbox; time spent in tools is not counted.
        wall_seconds: from start to end, tools included. Looked at between tool calls: a tool bounds its own time.
        memory: bytes of the sandbox's heap.
        recursion: depth of calls.
        tool_calls: calls of any tool.
        model_calls: of these, calls of tools that ask a model (query, knowledge).
        output: bytes of the answer, of all that is printed, and of the arguments of one tool call.
    """

    seconds: float = 2.0
    wall_seconds: float = 60.0
    memory: int = 64 * 2**20
    recursion: int = 50
    tool_calls: int = 32
    model_calls: int = 8
    output: int = 10_000

    @classmethod
    def of(cls, section: LimitsSection) -> Limits:
        return cls(**{**section.model_dump(), "memory": section.memory * 2**20})
