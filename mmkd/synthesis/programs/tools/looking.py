"""Finding things."""

from __future__ import annotations

from mmkd.synthesis.programs.parts import Region, Thing
from mmkd.synthesis.programs.tools.base import tool
from mmkd.synthesis.programs.tools.view import View


@tool(grounded=True)
def find(view: View, image: Region, name: str) -> list[Thing]:
    """Everything in the image that the name describes, in reading order."""
    return view.things(image, name)


@tool(grounded=True)
def count(view: View, image: Region, name: str) -> int:
    """How many things in the image the name describes."""
    return len(view.notice(view.things(image, name)))


@tool(grounded=True)
def exists(view: View, image: Region, name: str) -> bool:
    """Whether the image has anything that the name describes."""
    return bool(view.notice(view.things(image, name)))
