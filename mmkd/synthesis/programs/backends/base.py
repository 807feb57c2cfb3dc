"""What a back end is. Back ends see pixels and text, never a program or its handles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from mmkd.synthesis.programs.parts import Box


@dataclass(frozen=True)
class Detection:
    """One thing in an image.

    Attributes:
        label: what it is, e.g. "red circle".
        box: in pixels of the image that was looked at.
        score: 0 to 1.
        cell: (row, column) where the image is a grid of cells, each with one thing at most.
    """

    label: str
    box: Box
    score: float = 1.0
    cell: tuple[int, int] | None = None


class Detector(Protocol):
    def detect(self, image: Image.Image, name: str) -> list[Detection]:
        """Everything in an RGB image that `name` describes, e.g. "red circles", in reading order.

        Raises: reasons.Stop where it cannot tell what the name means.
        """
        ...


# (RGB image, question) -> a short answer. The question may hold text of any origin: it is data, no instruction.
Asker = Callable[[Image.Image, str], str]


@dataclass(frozen=True)
class Backends:
    """One back end for each need; None leaves out the tools that need it.

    Attributes:
        detect: finds things by name.
        ask: answers questions about an image.
        read: RGB image -> the lines of text in it, from top to bottom.
        depth: RGB image -> distance from the viewer [H, W], larger is farther; the unit is the model's own.
        know: question -> answer, without an image (a language model).
    """

    detect: Detector
    ask: Asker | None = None
    read: Callable[[Image.Image], list[str]] | None = None
    depth: Callable[[Image.Image], np.ndarray] | None = None
    know: Callable[[str], str] | None = None
