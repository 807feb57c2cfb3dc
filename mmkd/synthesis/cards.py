"""Data cards: Markdown about a set that an engine has made, from a template beside the engine."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmkd.synthesis.programs.values import visible


def rendered(template: Path, **values: Any) -> str:
    """The template with `values` and mmkd's `version`; its filter `cell` is the function below.

    A name that it uses and nobody gave is an error.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    return environment.from_string(template.read_text(encoding="utf-8")).render(version=version("mmkd"), **values)


def cell(text: object) -> str:
    """Of any origin, as text inside a table."""
    return visible(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
