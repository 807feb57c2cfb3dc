"""What a tool is: a typed, versioned function of what a program can see."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmkd.synthesis.programs.parts import Box, Picture, Region, Thing

# What a parameter may be annotated with, in the words of messages and prompts.
KINDS: dict[Any, str] = {
    Picture: "image",
    Thing: "thing",
    Region: "image or thing",
    Region | Box: "image, thing or box",
    list[Thing]: "list of things",
    Box: "box",
    str: "text",
    float: "number",
    bool: "yes or no",
}


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: Any  # a key of KINDS
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Tool:
    """A function that programs may call by its name.

    Attributes:
        function: takes a View, then the parameters with what is behind their handles.
        version: goes up whenever the same call may answer otherwise; written into every event.
        grounded: whether it looks at the picture.
        asks_model: whether it counts against a program's quota of model calls.
        needs: the field of Backends without which it is not offered, or None.
        returns: what a program gets, in words.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    version: int
    grounded: bool
    asks_model: bool
    needs: str | None
    returns: str

    @property
    def signature(self) -> str:
        """E.g. `find(image, name) -> list of things`, for prompts and messages."""
        names = [one.name if one.required else f"{one.name}={one.default!r}" for one in self.parameters]
        return f"{self.name}({', '.join(names)}) -> {self.returns}"

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").splitlines()[0]


def tool(
    *, version: int = 1, grounded: bool = False, asks_model: bool = False, needs: str | None = None
) -> Callable[[Callable[..., Any]], Tool]:
    """Decorator: a function (view, parameters..) -> result becomes a tool of its name.

    Annotations say what the arguments are checked to be (see KINDS); results are parts of the picture, plain values,
    None, or lists of these.

    Raises: TypeError for a parameter whose annotation is none of KINDS, or a tool that takes no View.
    """

    def make(function: Callable[..., Any]) -> Tool:
        hints = typing.get_type_hints(function)
        view, *rest = inspect.signature(function).parameters.values()
        if view.name != "view":
            raise TypeError(f"tool {function.__name__}: its first parameter is {view.name!r}; it has to be view.")
        parameters = []
        for one in rest:
            if hints.get(one.name) not in KINDS:
                allowed = ", ".join(str(kind) for kind in KINDS)
                raise TypeError(f"tool {function.__name__}: {one.name} is {hints.get(one.name)}; allowed: {allowed}.")
            parameters.append(Parameter(one.name, hints[one.name], one.default))
        return Tool(
            function.__name__,
            function,
            tuple(parameters),
            version,
            grounded,
            asks_model,
            needs,
            _in_words(hints.get("return")),
        )

    return make


def _in_words(kind: Any) -> str:
    if isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind):
        rest = [one for one in typing.get_args(kind) if one is not type(None)]
        return f"{_in_words(rest[0])} or None"
    words = {int: "whole number", list[str]: "list of texts"}
    return KINDS.get(kind) or words.get(kind, "value")
