"""Coloured shapes on light backgrounds, by pixels alone: exact on mmkd's own scenes, and no use on photographs."""

from __future__ import annotations

import re

from PIL import Image

from mmkd.data.scene_questions import COLORS, SHAPES, Words
from mmkd.synthesis.programs.backends.base import Backends, Detection
from mmkd.synthesis.programs.backends.remembered import Remembered
from mmkd.synthesis.programs.backends.shapes import shapes_in
from mmkd.synthesis.programs.reasons import Reason, Stop

ANYTHING = ("shape", "thing", "object", "item", "figure")
_IGNORED = ("a", "an", "the", "any", "all", "one")


def classical() -> Backends:
    """The back ends that need no model."""
    detector = ClassicalDetector()
    return Backends(detect=detector, ask=ClassicalAsker(detector))


class ClassicalDetector:
    """Finds by colour and shape: "red circle", "circles", "red", "shape"."""

    def __init__(self, remember: int = 64):
        self._all = Remembered(lambda image, _: shapes_in(image), remember)

    def detect(self, image: Image.Image, name: str) -> list[Detection]:
        """Raises: Stop for a word that is neither a colour nor a shape."""
        words = parse(name)
        return [one for one in self._all(image, "") if _fits(words, one)]


class ClassicalAsker:
    """Answers "what color", "what shape", "is it red" and "what is this" of the largest thing in an image."""

    def __init__(self, detector: ClassicalDetector):
        self.detector = detector

    def __call__(self, image: Image.Image, question: str) -> str:
        """Raises: Stop for any other question, or where there is nothing."""
        found = self.detector.detect(image, "thing")
        if not found:
            raise Stop(Reason.BAD_ARGUMENT, "query: there is no coloured shape in this part of the picture.")
        largest = max(found, key=lambda one: (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]))
        color, shape = largest.label.split()
        text = question.lower()
        if re.match(r"\s*(is|are)\b", text):
            named = set(re.findall("[a-z]+", text.replace("grey", "gray"))) & {*COLORS, *SHAPES}
            if named:
                return "yes" if named <= {color, shape} else "no"
        if re.search(r"\bcolou?r\b", text):
            return color
        if re.search(r"\bshape\b", text):
            return shape
        if re.search(r"\bwhat\b", text):
            return largest.label
        raise Stop(
            Reason.TOOL_ERROR,
            "query: the classical back end answers what color, what shape, and is it <color or shape>. Use a VLM.",
        )


def parse(name: str) -> Words:
    """ "red circles" -> Words("red", "circle"). Raises: Stop for words that it does not know."""
    color = shape = None
    for word in re.findall(r"[^\s,.;:!?]+", name.lower()):
        word = "gray" if word == "grey" else word
        single = word.removesuffix("s")
        if word in COLORS and color in (None, word):
            color = word
        elif single in SHAPES and shape in (None, single):
            shape = single
        elif single not in ANYTHING and word not in _IGNORED:
            raise Stop(
                Reason.BAD_ARGUMENT,
                f"{name[:60]!r} is no description that the classical back end knows: a color ({', '.join(COLORS)}), a "
                f"shape ({', '.join(SHAPES)}), both, or thing.",
            )
    return Words(color, shape)


def _fits(words: Words, found: Detection) -> bool:
    color, shape = found.label.split()
    return words.color in (None, color) and words.shape in (None, shape)
