"""Parts of a picture, and the opaque handles under which a program speaks of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the whole picture; right and bottom are outside
MOST_SIDE = 2048  # pixels; larger pictures are shrunk before a program sees them


@dataclass(frozen=True)
class Part:
    """A rectangle of the picture. A program holds its handle only, and can neither read nor forge what is behind it."""

    handle: str
    box: Box


@dataclass(frozen=True)
class Picture(Part):
    """The whole picture, or a crop."""


@dataclass(frozen=True)
class Thing(Part):
    """What a detector found.

    Attributes:
        label: what it was found as, e.g. "red circle".
        within: handle of the picture that it was looked for in.
        cell: (row, column) where that picture is a grid of cells, each with one thing at most.
    """

    label: str
    score: float
    within: str
    cell: tuple[int, int] | None = None


Region = Picture | Thing


def part_of(row: dict[str, Any]) -> Part:
    """The part whose fields these are, through JSON or not."""
    left, top, right, bottom = row["box"]
    fields = {**row, "box": (left, top, right, bottom)}
    if "label" not in row:
        return Picture(**fields)
    return Thing(**{**fields, "cell": None if row["cell"] is None else tuple(row["cell"])})


def is_box(value: Any) -> bool:
    """Whether a JSON value is four finite numbers."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value)
    )


def area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlap(one: Box, other: Box) -> Box:
    """What both boxes cover; of no area where they do not meet."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    both = area(overlap(one, other))
    return both / (area(one) + area(other) - both) if both else 0.0
