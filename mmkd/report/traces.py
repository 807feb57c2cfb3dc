"""A program's trace: its calls as lines, and the parts of the picture that they speak of as boxes."""

from __future__ import annotations

from typing import Any

from mmkd.report.album import Pictured
from mmkd.report.browse import Box, Node, number, text
from mmkd.synthesis.programs.parts import MOST_SIDE

MOST_CALLS = 60
MOST_BOXES = 60


def calls(trace: list[dict[str, Any]]) -> list[Node]:
    """`1 find(image="image:0", name="red circle") → ["thing:1"]` and so on."""
    found = []
    for place, event in enumerate(trace[:MOST_CALLS], 1):
        given = ", ".join(f"{text(name, 40)}={_json(value)}" for name, value in event["arguments"].items())
        found.append(Node(f"{place} {text(event['tool'], 40)}", f"({given}) → {_json(event['result'])}"))
    return found


def _json(value: Any) -> str:
    return f'"{text(value, 200)}"' if isinstance(value, str) else text(value, 200)


def boxes(trace: list[dict[str, Any]], picture: Pictured) -> list[Box]:
    """What calls found, and what they were given where nothing had found it; each once, with the numbers of its calls.

    A trace counts in the pixels that the program saw: of the picture with sides of at most MOST_SIDE.
    """
    scale = min(1.0, MOST_SIDE / max(picture.width, picture.height))
    width, height = scale * picture.width, scale * picture.height
    spoken: dict[tuple[tuple[float, ...], str], tuple[list[str], str]] = {}
    for place, event in enumerate(trace[:MOST_CALLS], 1):
        for style in ("given", "found"):
            for part in event[style]:
                edges = tuple(map(number, part["box"]))
                name = text(part.get("label", "crop"), 40)
                numbers = spoken.setdefault((edges, name), ([], style))[0]
                if str(place) not in numbers:
                    numbers.append(str(place))
    found = []
    for ((left, top, right, bottom), name), (numbers, style) in list(spoken.items())[:MOST_BOXES]:
        at = (left / width, top / height, (right - left) / width, (bottom - top) / height)
        found.append(Box(*(round(100 * one, 2) for one in at), f"{','.join(numbers)} {name}", style))
    return found
