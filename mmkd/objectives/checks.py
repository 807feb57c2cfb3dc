"""Checks of option values, each with an error that says what is allowed."""

from __future__ import annotations

from operator import ge, gt, le, lt
from typing import Any

from mmkd.errors import ConfigError


def number(
    objective: str,
    option: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """`value` as a float, > above, >= least, < below, <= most. Raises ConfigError."""
    usual = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    known = ((">", above, gt), (">=", least, ge), ("<", below, lt), ("<=", most, le))
    limits = [(sign, limit, holds) for sign, limit, holds in known if limit is not None]
    if not usual or not all(holds(value, limit) for _, limit, holds in limits):
        expected = " and ".join(f"{sign} {limit:g}" for sign, limit, _ in limits)
        raise ConfigError(f"{objective}: {option}={value!r}, expected a number {expected}".rstrip() + ".")
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
