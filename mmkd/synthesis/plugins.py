"""Functions by name: the packaged ones, those that code registers, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from mmkd.config.problems import near
from mmkd.errors import ConfigError

Function = Callable[..., Any]


def by_name(name: str, what: str, registered: Mapping[str, Function], group: str) -> Function:
    """The registered function of that name, or the installed one of the entry point `group`.

    Args:
        what: a word for it, for messages, e.g. selector.

    Raises: ConfigError with the nearest name, or for an entry point that is no function.
    """
    if name in registered:
        return registered[name]
    installed = {point.name: point for point in entry_points(group=group)}
    if name not in installed:
        known = {*registered, *installed}
        raise ConfigError(f"{what} {name!r} is not one of {', '.join(sorted(known))}.{near(name, known)}")
    found = installed[name].load()
    if not callable(found):
        raise ConfigError(
            f"entry point {group} {name} ({installed[name].value}) is a {type(found).__name__}; allowed: a function."
        )
    return found
