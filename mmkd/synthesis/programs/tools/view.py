"""What one run of a program can see: one picture, and the parts of it that have a handle."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from PIL import Image

from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.parts import Box, Part, Picture, Region, Thing, overlap
from mmkd.synthesis.programs.reasons import Reason, Stop

WHOLE = "image:0"  # handle of the whole picture
MOST_PARTS = 2000

P = TypeVar("P", bound=Part)


class View:
    """Handles are given out here and mean nothing outside this run.

    Attributes:
        parts: everything with a handle, by handle.
        noticed: parts that the tool call under way speaks of though it does not return them.
    """

    def __init__(self, picture: Image.Image, backends: Backends):
        self.backends = backends
        self._picture = picture.convert("RGB")
        self.whole = Picture(WHOLE, (0, 0, picture.width, picture.height))
        self.parts: dict[str, Part] = {WHOLE: self.whole}
        self.noticed: list[Part] = []

    def pixels(self, part: Region) -> Image.Image:
        """The picture inside `part`, RGB."""
        return self._picture if part.box == self.whole.box else self._picture.crop(part.box)

    def crop(self, box: Box) -> Picture:
        """A new part. Raises: Stop where the box covers nothing of the picture."""
        left, top, right, bottom = overlap(box, self.whole.box)
        if right - left < 1 or bottom - top < 1:
            width, height = self.whole.box[2:]
            raise Stop(Reason.BAD_ARGUMENT, f"box {list(box)} covers nothing of the picture ({width} x {height}).")
        return self._with_handle(Picture("", (left, top, right, bottom)))

    def things(self, region: Region, name: str) -> list[Thing]:
        """What the detector finds in `region` under that name, boxes in pixels of the whole picture."""
        x, y = region.box[:2]
        found = []
        for one in self.backends.detect.detect(self.pixels(region), name):
            left, top, right, bottom = one.box
            box = overlap((left + x, top + y, right + x, bottom + y), self.whole.box)
            found.append(self._with_handle(Thing("", box, one.label, one.score, region.handle, one.cell)))
        return found

    def notice(self, parts: list[Thing]) -> list[Thing]:
        """Puts parts on the trace that the result itself does not hold."""
        self.noticed += parts
        return parts

    def _with_handle(self, part: P) -> P:
        """The part with a handle: the one it got before, if it is not new."""
        for known in self.parts.values():
            if type(known) is type(part) and replace(known, handle="") == part:
                return known  # type: ignore[return-value]  # the same type, just compared
        if len(self.parts) >= MOST_PARTS:
            raise Stop(Reason.OUTPUT, f"more than {MOST_PARTS:,} things and crops.")
        kind = type(part).__name__.lower().replace("picture", "image")
        number = sum(handle.startswith(kind) for handle in self.parts)
        named = replace(part, handle=f"{kind}:{number}")
        self.parts[named.handle] = named
        return named
