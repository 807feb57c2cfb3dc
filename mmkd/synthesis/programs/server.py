"""The tool server: checks every call of a program, answers it, and writes the trace."""

from __future__ import annotations

import time
from typing import Any

from mmkd.config.problems import near
from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.parts import Box, Part, Picture, Region, Thing
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.tools.base import KINDS, Parameter, Tool
from mmkd.synthesis.programs.tools.registry import Toolset
from mmkd.synthesis.programs.tools.view import View
from mmkd.synthesis.programs.values import plain

MOST_TEXT = 500  # characters of one text argument
MOST_SIDE = 100_000  # a box's numbers, in pixels


class ToolServer:
    """Serves one run of one program. Trusts nothing of what it is asked."""

    def __init__(self, tools: Toolset, view: View, limits: Limits):
        self.tools, self.view, self.limits = tools, view, limits
        self.events: list[Event] = []
        self.calls = self.model_calls = 0

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result as JSON; parts of the picture as handles. Raises: Stop, which ends the program."""
        if name not in self.tools:
            raise Stop(Reason.UNKNOWN_NAME, f"{name[:60]} is no tool.{near(name[:60], self.tools)}")
        tool = self.tools[name]
        self._count(tool)
        given = self._bound(tool, args, kwargs)
        taken = {one.name: self._taken(tool, one, given[one.name]) for one in tool.parameters if one.name in given}
        self.view.noticed = []
        started = time.perf_counter()
        try:
            result = tool.function(self.view, **taken)
        except Stop:
            raise
        except Exception as error:  # a back end's defect, or a picture that breaks it, ends one program
            raise Stop(Reason.TOOL_ERROR, f"{name}: {type(error).__name__}: {str(error)[:200]}") from error
        seconds = time.perf_counter() - started
        found: list[Part] = []
        answer = plain(_handles(result, found), self.limits.output, f"the result of {name}", Reason.TOOL_ERROR)
        self.events.append(
            Event(
                call=len(self.events),
                tool=name,
                version=tool.version,
                arguments=given,
                result=answer,
                given=tuple(p for p in _parts(taken.values()) if p != self.view.whole),
                found=tuple(dict.fromkeys([*found, *self.view.noticed])),
                grounded=tool.grounded,
                seconds=seconds,
            )
        )
        return answer

    def _count(self, tool: Tool) -> None:
        self.calls += 1
        self.model_calls += tool.asks_model
        if self.calls > self.limits.tool_calls:
            raise Stop(Reason.TOOL_CALLS, f"{tool.name}: call {self.calls}; {self.limits.tool_calls} are allowed.")
        if self.model_calls > self.limits.model_calls:
            raise Stop(
                Reason.MODEL_CALLS,
                f"{tool.name}: call {self.model_calls} of a model; {self.limits.model_calls} are allowed.",
            )

    def _bound(self, tool: Tool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, as plain JSON."""
        names = [one.name for one in tool.parameters]
        if len(args) > len(names):
            raise Stop(Reason.BAD_ARGUMENT, f"{tool.name}: {len(args)} arguments; it is {tool.signature}.")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in names or name in given:
                found = "is given twice." if name in given else f"is no parameter.{near(name[:60], names)}"
                raise Stop(Reason.BAD_ARGUMENT, f"{tool.name}: {name[:60]} {found} It is {tool.signature}.")
            given[name] = value
        missing = [one.name for one in tool.parameters if one.required and one.name not in given]
        if missing:
            raise Stop(Reason.BAD_ARGUMENT, f"{tool.name}: {missing[0]} is missing; it is {tool.signature}.")
        return plain(given, self.limits.output, f"an argument of {tool.name}")

    def _taken(self, tool: Tool, parameter: Parameter, value: Any) -> Any:
        """What the tool gets for an argument: a part of the picture for its handle, or the value itself."""
        found = self._of_kind(parameter.kind, value)
        if found is None:
            shown = repr(value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            wanted = KINDS[parameter.kind]
            raise Stop(Reason.BAD_ARGUMENT, f"{tool.name}: {parameter.name} is {shown}; it takes {wanted}.")
        return found

    def _of_kind(self, kind: Any, value: Any) -> Any:
        if kind is str:
            return value if isinstance(value, str) and len(value) <= MOST_TEXT else None
        if kind is bool:
            return value if isinstance(value, bool) else None
        if kind is float:
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        if kind == list[Thing]:
            if not isinstance(value, list):
                return None
            found = [self._of_kind(Thing, one) for one in value]
            return None if None in found else found
        if kind == Box or (kind == Region | Box and isinstance(value, list)):
            return _box(value)
        part = self.view.parts.get(value) if isinstance(value, str) else None
        classes = {Picture: Picture, Thing: Thing}.get(kind, (Picture, Thing))
        return part if isinstance(part, classes) else None


def _box(value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= MOST_SIDE for n in value):
        return None
    left, top, right, bottom = (round(n) for n in value)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _handles(result: Any, found: list[Part]) -> Any:
    """The result with handles for parts, which are put into `found`."""
    if isinstance(result, Part):
        found.append(result)
        return result.handle
    return [_handles(one, found) for one in result] if isinstance(result, list) else result


def _parts(values: Any) -> list[Part]:
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if isinstance(one, Part)]
