"""Objectives by name, and their options checked against the constructor.

One of another package is known by an entry point of the group `mmkd.objectives`, whose name is the objective's.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol

from mmkd.errors import ConfigError
from mmkd.objectives.base import Objective

GROUP = "mmkd.objectives"
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_registry: dict[str, type[Objective]] = {}


class Section(Protocol):
    """The part of a config that names an objective."""

    name: str

    def options(self) -> dict[str, Any]: ...


def register(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: make an objective known as `name`. A name taken by another class is an error."""

    def add(cls: type[Objective]) -> type[Objective]:
        if name in _registry:
            raise ValueError(f"objective {name!r} is already {_registry[name].__qualname__}; choose another name.")
        cls.name = name
        _registry[name] = cls
        return cls

    return add


def names(pattern: str = "*") -> list[str]:
    """Registered names that match a wildcard, sorted."""
    return sorted(fnmatch.filter(_registry, pattern))


def sparse_capable(name: str) -> bool:
    """Whether an objective reads the teacher's distributions, and a cache of them is enough."""
    kind = _registry[name]
    return kind.teacher and kind.sparse_teacher and not kind.reads_pairs


def options(name: str) -> dict[str, inspect.Parameter]:
    """Options of an objective by name. Raises ConfigError for an unknown objective."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if name not in _registry and name in installed:
        installed[name].load()  # its decorator registers it
        if name not in _registry:
            raise ConfigError(
                f"entry point {GROUP} {name} ({installed[name].value}) registers no objective of that name; "
                f"@register({name!r}) over its class does."
            )
    if name not in _registry:
        known = sorted({*_registry, *installed})
        raise ConfigError(f"objective {name!r} is unknown.{_near(name, known)} There are: {', '.join(known)}.")
    parameters = dict(inspect.signature(_registry[name].__init__).parameters)
    parameters.pop("self")
    return {key: value for key, value in parameters.items() if value.kind not in _OPEN}


def build(section: Section) -> Objective:
    """The objective that a config section asks for.

    Raises: ConfigError for an unknown name, an option that it does not have, or a value that it does not take.
    """
    allowed, given = options(section.name), section.options()
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{key} is not a field of {section.name}.{_near(key, allowed)} "
                f"It has: {', '.join(allowed) or 'no options'}."
            )
    return _registry[section.name](**given)


def _near(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""
