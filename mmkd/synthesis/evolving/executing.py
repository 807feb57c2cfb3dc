"""The four functions of the visual chain, executed with our tools; what they contradict is not kept.

Grounding(noun) -> boxes · Referring(box) -> what is in it · Calculate(expression) -> number · OCR(place) -> text.
"""

from __future__ import annotations

import re

from mmkd.evaluate.matching import numeric
from mmkd.synthesis.evolving.items import Box, Content, Step
from mmkd.synthesis.evolving.outcomes import Rejection
from mmkd.synthesis.programs import parts
from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.counting import NUMBER_WORDS
from mmkd.synthesis.programs.evidence import unsupported
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.reasons import Stop
from mmkd.synthesis.programs.server import ToolServer
from mmkd.synthesis.programs.tools import Toolset, View
from mmkd.synthesis.programs.tools.view import WHOLE
from mmkd.synthesis.same_answer import plain

SAME = 0.5  # IoU from which two boxes are of one thing
LIMITS = Limits(tool_calls=64)
CONTRADICTED, NOT_EXECUTED = "contradicted by a tool", "a step cannot be executed"
NEEDS = {"grounding": "find", "referring": "find", "calculate": "calculate", "ocr": "ocr"}
_ORDER = re.compile(r"\b(?:first|second|third|fourth|fifth)\b", re.IGNORECASE)  # of steps, and no count of things
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def offered(tools: Toolset) -> list[str]:
    """The functions that can be executed with these tools."""
    return [name for name, tool in NEEDS.items() if tool in tools]


def execute(content: Content, view: View, tools: Toolset) -> Content:
    """The content with each step's boxes and results as the tools have them.

    Raises: Rejection where a step says otherwise than its tool, cannot be executed, or none is executed at all; or the
        answer, or a step's description, holds a number, colour, box or quotation that neither the steps nor the
        question hold; or the answer differs from the last step's number.
    """
    run = _Run(view, tools)
    steps = []
    for number, step in enumerate(content.steps, start=1):
        try:
            steps.append(run.step(number, step))
        except Stop as stop:
            raise Rejection(NOT_EXECUTED, f"step {number}, {step.function}: {stop.message}") from None
    executed = [number for number, step in enumerate(steps, start=1) if step.function != "none"]
    if not executed:  # words alone: nothing of it is checked
        raise Rejection(NOT_EXECUTED, f"none of its {len(steps)} steps is one of {', '.join(offered(tools))}")
    _check_answer(content, run, executed[-1])
    done = content.model_copy(update={"steps": steps})
    _check_words(done, run)
    return done


class _Run:
    """Executes steps in order; `values` holds the numbers that they gave, by their place from 1."""

    def __init__(self, view: View, tools: Toolset):
        self.view, self.tools = view, tools
        self.server = ToolServer(tools, view, LIMITS)
        self.values: dict[int, float] = {}
        self.texts: list[str] = []

    def step(self, number: int, step: Step) -> Step:
        if step.function == "none":
            return step
        if NEEDS[step.function] not in self.tools:
            raise Rejection(NOT_EXECUTED, f"step {number}: {step.function} is not offered here")
        return {"grounding": self._ground, "referring": self._refer, "calculate": self._calculate, "ocr": self._read}[
            step.function
        ](number, step)

    def _ground(self, number: int, step: Step) -> Step:
        found = self._find(WHOLE, step.argument)
        if not _same_boxes([pixels(box, self.view) for box in step.boxes], found):
            raise Rejection(
                CONTRADICTED,
                f"step {number} grounds {step.argument!r} in {len(step.boxes)} boxes; the detector finds {len(found)}"
                + (" elsewhere" if len(found) == len(step.boxes) else ""),
            )
        self.values[number] = float(len(found))
        self.texts.append(step.argument)
        return step.model_copy(update={"boxes": [shares(box, self.view) for box in found]})

    def _refer(self, number: int, step: Step) -> Step:
        box = self._only_box(number, step)
        if not step.result.strip():
            raise Rejection(NOT_EXECUTED, f"step {number}: referring does not say what is in its box")
        if not any(parts.iou(box, one) >= SAME for one in self._find(WHOLE, step.result)):
            # What is small is found in the zoom only: the box and half its size around it, twice as wide and high.
            wide, high = (box[2] - box[0]) // 2, (box[3] - box[1]) // 2
            around = [box[0] - wide, box[1] - high, box[2] + wide, box[3] + high]
            zoom = self.server.call("crop", (around,), {})
            if not any(parts.iou(box, one) >= SAME for one in self._find(zoom, step.result)):
                raise Rejection(CONTRADICTED, f"step {number}: there is no {step.result!r} in box {list(box)}")
        self._note(number, step.result)
        return step

    def _calculate(self, number: int, step: Step) -> Step:
        value = float(self.server.call("calculate", (self._filled(number, step.argument),), {}))
        said = step.result.strip().lower()
        said = as_text(NUMBER_WORDS[said]) if said in NUMBER_WORDS else said
        if said and not numeric(said, str(value), 1e-3):
            raise Rejection(CONTRADICTED, f"step {number}: {step.argument!r} is {as_text(value)}, not {step.result!r}")
        self.values[number] = value
        return step.model_copy(update={"result": as_text(value)})

    def _read(self, number: int, step: Step) -> Step:
        region = WHOLE
        if step.boxes:
            region = self.server.call("crop", (list(self._only_box(number, step)),), {})
        lines = self.server.call("ocr", (region,), {})
        if not plain(step.result) or f" {plain(step.result)} " not in f" {plain(' '.join(lines))} ":
            raise Rejection(CONTRADICTED, f"step {number} reads {step.result!r}; ocr reads {' / '.join(lines)!r}")
        self._note(number, step.result)
        return step

    def _find(self, region: str, name: str) -> list[parts.Box]:
        self.server.call("find", (region, name), {})
        return [part.box for part in self.server.events[-1].found]

    def _only_box(self, number: int, step: Step) -> parts.Box:
        if len(step.boxes) != 1:
            raise Rejection(
                NOT_EXECUTED, f"step {number}: {step.function} has {len(step.boxes)} boxes; it looks at one"
            )
        return pixels(step.boxes[0], self.view)

    def _filled(self, number: int, expression: str) -> str:
        """The expression with numbers for #n; nothing but numbers is ever put in."""

        def value(found: re.Match[str]) -> str:
            place = int(found[1])
            if place not in self.values:
                raise Rejection(NOT_EXECUTED, f"step {number}: #{place} is no earlier step that gives a number")
            return f"({as_text(self.values[place])})"

        return re.sub(r"#(\d{1,2})(?!\d)", value, expression)

    def _note(self, number: int, text: str) -> None:
        self.texts.append(text)
        if _NUMBER.fullmatch(text.strip()):
            self.values[number] = float(text)


def _check_answer(content: Content, run: _Run, last: int) -> None:
    function = content.steps[last - 1].function
    said = NUMBER_WORDS.get(plain(content.answer), content.answer.strip().rstrip("."))
    counts = function == "calculate" or (function == "grounding" and last == len(content.steps))
    if counts and _NUMBER.fullmatch(str(said)) and not numeric(str(said), str(run.values[last]), 1e-3):
        raise Rejection(
            CONTRADICTED, f"the answer is {content.answer!r}, but step {last} gives {as_text(run.values[last])}"
        )


def _check_words(content: Content, run: _Run) -> None:
    """Of the answer, and of each step's description, which a record may tell."""
    values = run.values.values()
    boxes = [str(list(box)) for step in content.steps if step.function != "none" for box in step.boxes]
    # The templates tell distances in shares of the width, of which `calculate`, without powers, gives the squares.
    roots = [f"{round(value, 6) ** 0.5:.2f}" for value in values if 0 < value < 2]
    held = " ".join([content.question, *run.texts, *map(as_text, values), *boxes, *roots])
    steps = [
        (f"the description of step {place}", _ORDER.sub(" ", step.description))
        for place, step in enumerate(content.steps, 1)
    ]
    for name, text in (("the answer", content.answer), *steps):
        if loose := unsupported(text, run.server.events, held):
            raise Rejection(CONTRADICTED, f"{name} holds what no step found: {', '.join(loose)}")


def _same_boxes(said: list[parts.Box], found: list[parts.Box]) -> bool:
    """Whether each box said is one found, each found once. Greedy: things overlap too little to be mixed up."""
    left = list(found)
    for box in said:
        best = max(left, key=lambda one: parts.iou(box, one), default=None)
        if best is None or parts.iou(box, best) < SAME:
            return False
        left.remove(best)
    return not left


def pixels(box: Box, view: View) -> parts.Box:
    """Of shares. Raises Rejection for a box of no area."""
    width, height = view.whole.box[2:]
    left, top, right, bottom = (
        round(box[0] * width),
        round(box[1] * height),
        round(box[2] * width),
        round(box[3] * height),
    )
    if left >= right or top >= bottom:
        raise Rejection(NOT_EXECUTED, f"box {list(box)} has no area; it is left, top, right, bottom from 0 to 1")
    return left, top, right, bottom


def shares(box: parts.Box, view: View) -> Box:
    width, height = view.whole.box[2:]
    return tuple(round(n / side, 4) for n, side in zip(box, (width, height, width, height)))  # type: ignore[return-value]
