"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmkd.errors import ConfigError

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file, run folder, or packaged config such as demo/distill.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. student.voco.tokens=4.")
]
Model = Annotated[str, typer.Argument(help="Release, model folder, run folder, or a hub id.")]
Tokens = Annotated[
    str | None, typer.Option(help="Tokens an image is read as, or full; all the model's compression tokens by default.")
]


def token_counts(text: str) -> list[int | str]:
    """Of a comma-separated list. Raises ConfigError."""
    counts: list[int | str] = []
    for item in text.split(","):
        item = item.strip()
        if item != "full" and not (item.isdecimal() and int(item) > 0):
            raise ConfigError(
                f"--tokens has {item!r}; allowed: whole numbers from 1 and the word full, e.g. 1,2,4,full."
            )
        counts.append(item if item == "full" else int(item))
    return counts


def token_count(text: str | None) -> Any:
    """The one count that an option gives, None where it was not given. Raises ConfigError."""
    if text is None:
        return None
    counts = token_counts(text)
    if len(counts) != 1:
        raise ConfigError(f"--tokens has {text!r}; one count is meant here, e.g. 1 or full.")
    return counts[0]
