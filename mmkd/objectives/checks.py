"""Checks of option values, each with an error that says what is allowed."""

from __future__ import annotations

from typing import Any

from mmkd.errors import ConfigError


def number(objective: str, option: str, value: Any, *, above: float | None = None, least: float | None = None) -> float:
    """`value` as a float, > above, >= least. Raises ConfigError."""
    limit = f" > {above:g}" if above is not None else f" >= {least:g}" if least is not None else ""
    usual = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    if not usual or (above is not None and value <= above) or (least is not None and value < least):
        raise ConfigError(f"{objective}: {option}={value!r}, expected a number{limit}.")
    return float(value)


def count(objective: str, option: str, value: Any) -> int:
    """`value` as an int >= 1. Raises ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{objective}: {option}={value!r}, expected a whole number >= 1.")
    return value


def choice(objective: str, option: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`. Raises ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{objective}: {option}={value!r}, expected one of: {', '.join(allowed)}.")
    return value
