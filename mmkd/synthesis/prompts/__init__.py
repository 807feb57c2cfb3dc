"""Prompts, each in a file of its own with a version.

`NAME.jinja` starts with `{# version N #}` and holds the blocks `system` (optional) and `user`. What is put in is data:
it is never read as a template, and a name that a template uses and nobody gave is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmkd.data.records import Role, Turn
from mmkd.errors import ConfigError

FOLDER = Path(__file__).parent
ROLES: tuple[Role, ...] = ("system", "user")

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True)
class Prompt:
    """A template. `str(prompt)` names it, its version, and the first letters of the SHA-256 of its text."""

    name: str
    version: int
    sha: str
    template: Template

    def __str__(self) -> str:
        return f"{self.name} v{self.version} {self.sha[:8]}"

    def render(self, **values: Any) -> tuple[Turn, ...]:
        """The turns. `mark`, a word that stands in none of the values, fences what others wrote."""
        context = self.template.new_context({**values, "mark": _mark(values)})
        blocks = self.template.blocks
        return tuple(Turn(role, "".join(blocks[role](context)).strip()) for role in ROLES if role in blocks)


def prompt(name: str) -> Prompt:
    """The packaged prompt of that name. Raises ConfigError where there is none."""
    return _read(FOLDER / f"{name}.jinja")


@cache
def _read(file: Path) -> Prompt:
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.jinja")))
        raise ConfigError(f"there is no prompt {file.stem}; there are {known}.")
    text = file.read_text(encoding="utf-8")
    version = re.match(r"\{# version (\d+) #\}", text)
    if version is None:
        raise ConfigError(f"{file} does not start with {{# version N #}}.")
    sha = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(file.stem, int(version[1]), sha, _environment.from_string(text))


def _mark(values: Mapping[str, Any]) -> str:
    """Of the values' own hash, so that nobody who writes a value can know it and close the fence."""
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
