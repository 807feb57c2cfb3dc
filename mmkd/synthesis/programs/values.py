"""Values that may cross between program and host: JSON, small and shallow."""

from __future__ import annotations

import math
from typing import Any

from mmkd.synthesis.programs.reasons import Reason, Stop

MOST_DEPTH = 8
MOST_NUMBER = 10**12


def plain(value: Any, most_bytes: int, what: str, reason: Reason = Reason.BAD_ARGUMENT) -> Any:
    """A copy of `value` made of None, bool, int, float, str, list and dict with str keys; tuples become lists.

    Written without recursion over more than MOST_DEPTH levels and stops at the first item too many, since the value
    may be anything a hostile program can build.

    Raises: Stop with `reason` for another type, a number that is not finite or beyond 1e12, or nesting deeper than 8;
        with Reason.OUTPUT for more than `most_bytes`.
    """
    left = [most_bytes]

    def spend(count: int) -> None:
        left[0] -= count
        if left[0] < 0:
            raise Stop(Reason.OUTPUT, f"{what} is larger than {most_bytes:,} bytes.")

    def copy(item: Any, depth: int) -> Any:
        spend(2)
        if depth > MOST_DEPTH:
            raise Stop(reason, f"{what} is nested deeper than {MOST_DEPTH} levels.")
        kind = type(item)
        if item is None or kind is bool:
            return item
        if kind is int or kind is float:
            # Compared before it is printed: the digits of a huge int take quadratic time.
            if not -MOST_NUMBER <= item <= MOST_NUMBER:  # false for nan too
                found = "not a finite number" if kind is float and not math.isfinite(item) else "beyond 1e12"
                raise Stop(reason, f"{what} holds a number that is {found}.")
            return item
        if kind is str:
            spend(len(item))
            return item.encode("utf-8", "replace").decode("utf-8")
        if kind is list or kind is tuple:
            return [copy(one, depth + 1) for one in item]
        if kind is dict:
            if not all(type(key) is str for key in item):
                raise Stop(reason, f"{what} holds a dict with keys that are not text.")
            return {copy(key, depth + 1): copy(one, depth + 1) for key, one in item.items()}
        raise Stop(reason, f"{what} holds a {kind.__name__[:40]}; numbers, text, lists and dicts of these are allowed.")

    return copy(value, 0)
