"""Tools by name, from the entry point `mmkd.tools`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points

from mmkd.config.problems import near
from mmkd.errors import ConfigError
from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.tools.base import Tool

GROUP = "mmkd.tools"


def installed() -> dict[str, Tool]:
    """Every tool of every installed package, by name, sorted.

    Raises: ConfigError for an entry that is no tool, or is called otherwise than its entry point; or where there is
        none.
    """
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        one = point.load()
        if not isinstance(one, Tool) or one.name != point.name:
            raise ConfigError(
                f"entry point {GROUP} {point.name} ({point.value}) is not a tool of that name. Make it one with "
                "mmkd.synthesis.programs.tools.tool, or uninstall its package."
            )
        found[one.name] = one
    if not found:
        raise ConfigError(
            f"no tool is installed under the entry point {GROUP}. mmkd brings its own, so its installation is older "
            "than its files: install it again, in a checkout by `make` or pip install -e ."
        )
    return found


class Toolset:
    """The tools that one kind of program may call.

    Args:
        backends: tools whose back end is missing are left out.
        names: only these; all by default.

    Attributes:
        lacking: tools that are left out -> the back end that each needs.

    Raises: ConfigError for a name that is not installed, or lacks its back end.
    """

    def __init__(self, backends: Backends, names: Iterable[str] | None = None):
        every = installed()
        able = {name: one for name, one in every.items() if one.needs is None or getattr(backends, one.needs)}
        self.lacking = {name: str(one.needs) for name, one in every.items() if name not in able}
        for name in names or ():
            if name not in every:
                raise ConfigError(f"tool {name!r} is not installed.{near(name, every)} There are: {', '.join(every)}.")
            if name not in able:
                raise ConfigError(f"tool {name} needs a back end for {every[name].needs!r}; none is given.")
        self._tools = able if names is None else {name: able[name] for name in names}

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)
