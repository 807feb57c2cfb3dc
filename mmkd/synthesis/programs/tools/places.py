"""Where things are: neighbours, crops, sizes, distances."""

from __future__ import annotations

import math

from mmkd.synthesis.programs.parts import Box, Picture, Region, Thing, area, centre
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.tools.base import tool
from mmkd.synthesis.programs.tools.view import View

STEPS = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (row, column), y points down


@tool(grounded=True)
def left_of(view: View, thing: Thing, name: str = "thing") -> Thing | None:
    """The thing that stands next to it on the left, or None."""
    return _next_to(view, thing, name, "left")


@tool(grounded=True)
def right_of(view: View, thing: Thing, name: str = "thing") -> Thing | None:
    """The thing that stands next to it on the right, or None."""
    return _next_to(view, thing, name, "right")


@tool(grounded=True)
def above(view: View, thing: Thing, name: str = "thing") -> Thing | None:
    """The thing that stands next to it above, or None."""
    return _next_to(view, thing, name, "above")


@tool(grounded=True)
def below(view: View, thing: Thing, name: str = "thing") -> Thing | None:
    """The thing that stands next to it below, or None."""
    return _next_to(view, thing, name, "below")


@tool(grounded=True)
def neighbours(view: View, thing: Thing, name: str = "thing") -> list[Thing]:
    """The things next to it: left, right, above, below."""
    found = [_next_to(view, thing, name, side) for side in STEPS]
    return [one for one in found if one is not None]


@tool()
def largest(view: View, things: list[Thing]) -> Thing | None:
    """The thing with the largest box, or None of an empty list."""
    return max(things, key=lambda one: area(one.box), default=None)


@tool()
def crop(view: View, region: Region | Box) -> Picture:
    """The part of the image inside a thing or a box [left, top, right, bottom], as an image of its own."""
    return view.crop(region if isinstance(region, tuple) else region.box)


@tool()
def distance(view: View, one: Region, other: Region) -> float:
    """Pixels between the centres of two things."""
    return round(math.dist(centre(one.box), centre(other.box)), 1)


@tool(grounded=True, needs="depth")
def depth(view: View, thing: Thing) -> float:
    """How far the thing is from the viewer: the median of the depth map inside its box; larger is farther."""
    import numpy as np

    assert view.backends.depth is not None
    whole = view.backends.depth(view.pixels(view.whole))  # [H, W]
    left, top, right, bottom = thing.box
    value = float(np.median(whole[top : max(bottom, top + 1), left : max(right, left + 1)]))
    if not math.isfinite(value):
        raise Stop(Reason.TOOL_ERROR, "depth: the model gave no finite depth there.")
    return round(value, 3)


def _next_to(view: View, thing: Thing, name: str, side: str) -> Thing | None:
    within = view.parts[thing.within]
    assert isinstance(within, Picture | Thing)
    candidates = [one for one in view.things(within, name) if one.box != thing.box]
    if thing.cell is not None:  # in a grid: the cell that touches
        down, right = STEPS[side]
        cell = (thing.cell[0] + down, thing.cell[1] + right)
        return next((one for one in candidates if one.cell == cell), None)
    gaps = [(gap, one) for one in candidates if (gap := _gap(thing.box, one.box, side)) is not None]
    return min(gaps, key=lambda pair: pair[0])[1] if gaps else None


def _gap(of: Box, other: Box, side: str) -> int | None:
    """Pixels between two boxes where `other` stands on that side of `of`, or None where it does not.

    To stand there: its centre lies beyond the edge, both overlap on the other axis, and no more than the larger of
    the two lies between them.
    """
    along, across = (0, 1) if side in ("left", "right") else (1, 0)
    shared = min(of[across + 2], other[across + 2]) - max(of[across], other[across])
    first, second = (other, of) if side in ("left", "above") else (of, other)
    gap = second[along] - first[along + 2]
    beyond = (
        centre(first)[along] < second[along] if side in ("left", "above") else centre(second)[along] > first[along + 2]
    )
    room = max(of[along + 2] - of[along], other[along + 2] - other[along])
    return max(gap, 0) if shared > 0 and beyond and gap <= room else None
