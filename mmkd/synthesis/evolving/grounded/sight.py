"""What the tools see of a scene, as things in a grid."""

from __future__ import annotations

from mmkd.data.scene_questions import DIRECTIONS, Thing, Words
from mmkd.synthesis.evolving.executing import shares
from mmkd.synthesis.evolving.items import MOST_BOXES, Box
from mmkd.synthesis.evolving.outcomes import Rejection
from mmkd.synthesis.programs.backends.classical import parse
from mmkd.synthesis.programs.reasons import Stop
from mmkd.synthesis.programs.tools import View


class Sight:
    """Raises: Rejection where the detector sees nothing in a grid, or more than a step may hold."""

    def __init__(self, view: View):
        try:
            found = view.things(view.whole, "thing")
        except Stop as stop:
            raise Rejection("nothing to ask about", stop.message) from None
        self.boxes: dict[Thing, Box] = {}
        for one in found:
            color, _, shape = one.label.partition(" ")
            if one.cell is not None and shape:
                self.boxes[Thing(*one.cell, color, shape, "")] = shares(one.box, view)
        if not self.boxes:
            raise Rejection("nothing to ask about", "the detector sees no coloured shapes in a grid here")
        if len(self.boxes) > MOST_BOXES:
            found = f"the detector sees {len(self.boxes)} coloured shapes here; at most {MOST_BOXES}"
            raise Rejection("nothing to ask about", found)
        self._at = {(thing.row, thing.column): thing for thing in self.boxes}

    @property
    def things(self) -> list[Thing]:
        return list(self.boxes)

    def fitting(self, words: str) -> list[Thing]:
        described = read(words)
        return [thing for thing in self.boxes if described.fits(thing)]

    def beside(self, thing: Thing, side: str) -> Thing | None:
        down, right = DIRECTIONS[side]
        return self._at.get((thing.row + down, thing.column + right))

    def walk(self, start: Thing, sides: tuple[str, ...]) -> list[Thing] | None:
        """The things on the way, start included; None where one is missing or comes twice."""
        way = [start]
        for side in sides:
            after = self.beside(way[-1], side)
            if after is None or after in way:
                return None
            way.append(after)
        return way


def read(words: str) -> Words:
    """Raises Rejection for a description of anything but coloured shapes."""
    try:
        return parse(words)
    except Stop as stop:
        raise Rejection("nothing to ask about", stop.message) from None
