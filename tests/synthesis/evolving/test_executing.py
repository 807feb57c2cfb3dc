"""The four functions, executed on scenes whose truth is known; and what a model may write in their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mmkd.synthesis.evolving.executing import CONTRADICTED, NOT_EXECUTED, execute, offered, shares
from mmkd.synthesis.evolving.items import Content, Step
from mmkd.synthesis.evolving.outcomes import Rejection
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.tools import Toolset, View


def step(function: str, argument: str = "", boxes=(), result: str = "", description: str = "") -> Step:
    return Step(function=function, argument=argument, boxes=list(boxes), result=result, description=description)


def content(*steps: Step, question: str = "how many?", answer: str = "something") -> Content:
    return Content(
        objects=["shape"], skills=[], steps=list(steps), form="open question", question=question, answer=answer
    )


@pytest.fixture
def seen(make_scene, view_of):
    """(view, label -> boxes as shares) of a scene."""
    view = view_of(make_scene("train", 3, 0))
    found: dict[str, list] = {}
    for one in view.things(view.whole, "thing"):
        found.setdefault(one.label, []).append(shares(one.box, view))
    return view, found


def rejected(kind: str, words: str, *args) -> None:
    with pytest.raises(Rejection) as caught:
        execute(*args)
    assert caught.value.kind == kind, caught.value
    assert words in caught.value.reason


def test_right_steps_are_kept_with_what_the_tools_gave(seen, tools):
    view, found = seen
    label, boxes = max(found.items(), key=lambda one: len(one[1]))
    loose = [tuple(min(1.0, n + 0.003) for n in box) for box in boxes]
    steps = [step("grounding", label, loose), step("calculate", "#1 * 2"), step("referring", "", boxes[:1], label)]
    done = execute(content(*steps), view, tools)
    assert sorted(done.steps[0].boxes) == sorted(boxes)
    assert done.steps[1].result == str(2 * len(boxes))
    assert done.steps[2] == steps[2]


def test_boxes_that_lack_or_add_or_miss_one_are_contradicted(seen, tools):
    view, found = seen
    label, boxes = next(iter(found.items()))
    other = next(one[0] for name, one in found.items() if name != label)
    nowhere = (0.0, 0.0, 0.02, 0.02)
    for wrong in (boxes[1:], [*boxes, other], [*boxes[1:], nowhere], [*boxes, boxes[0]]):
        rejected(CONTRADICTED, "the detector finds", content(step("grounding", label, wrong)), view, tools)


def test_a_box_that_holds_something_else_is_contradicted(seen, tools):
    view, found = seen
    label, other = list(found)[:2]
    rejected(CONTRADICTED, "there is no", content(step("referring", "", found[label][:1], other)), view, tools)


@pytest.mark.parametrize(
    ("expression", "result", "kind"),
    [
        ("2 + 2", "5", CONTRADICTED), ("#2 + 1", "", NOT_EXECUTED), ("#9", "", NOT_EXECUTED),
        ("1 / 0", "", NOT_EXECUTED),
        ("__import__('os')", "", NOT_EXECUTED), ("9 ** 9 ** 9", "", NOT_EXECUTED), ("1" * 200, "", NOT_EXECUTED),
        ("(" * 150, "", NOT_EXECUTED), ("2 + 2", "quattro", CONTRADICTED), ("", "", NOT_EXECUTED),
    ],
)  # fmt: skip
def test_sums_are_sums_and_hostile_ones_cost_the_item_only(seen, tools, expression, result, kind):
    rejected(kind, "step 1", content(step("calculate", expression, [], result)), seen[0], tools)


def test_numbers_in_words_count_as_numbers(seen, tools):
    done = execute(content(step("calculate", "2 + 1", [], "three"), answer="three"), seen[0], tools)
    assert done.steps[0].result == "3"
    wrong = content(step("calculate", "2 + 1"), answer="four")
    rejected(CONTRADICTED, "the answer is 'four', but step 1 gives 3", wrong, seen[0], tools)


def test_an_answer_with_a_number_or_colour_that_nothing_found_is_contradicted(seen, tools):
    view, found = seen
    label = next(iter(found))
    steps = [step("grounding", label, found[label]), step("none")]
    rejected(CONTRADICTED, "number 17", content(*steps, answer="about 17 of them"), view, tools)
    rejected(CONTRADICTED, "color magenta", content(*steps, answer="a magenta one"), view, tools)
    execute(content(*steps, answer=f"a {label}"), view, tools)


def test_a_description_that_tells_what_nothing_found_is_contradicted(seen, tools):
    blank = View(Image.new("RGB", (64, 64), "white"), classical())
    told = 'I see seven blue squares at [1, 2, 3, 4] and a sign that says "STOP"'
    held = "number 7, box [1.0, 2.0, 3.0, 4.0], color blue, quote 'stop'"
    for steps in (
        [step("grounding", "red circle", description=told)],
        [step("grounding", "shape"), step("none", description=told)],
    ):
        words = f"the description of step {len(steps)} holds what no step found: {held}"
        rejected(CONTRADICTED, words, content(*steps, answer="0"), blank, tools)
    view, found = seen
    label, boxes = next(iter(found.items()))
    right = f"{len(boxes)} of {label}, the first at {list(boxes[0])}; twice as many are {2 * len(boxes)}"
    steps = [step("grounding", label, boxes, "", right), step("calculate", "2 * #1 * 1", description=right)]
    execute(content(*steps), view, tools)
    counted = "Fifth, find it; fourth, look again"  # steps, and no things
    execute(content(step("grounding", label, boxes, "", counted), answer=f"a {label}"), view, tools)


@pytest.mark.parametrize("steps", [[], [step("none", result="7 red dogs")]])
def test_words_that_nothing_executes_are_not_believed(tools, steps):
    blank = View(Image.new("RGB", (64, 64), "white"), classical())
    for answer in ("7 red dogs at the left", "a dog"):
        rejected(NOT_EXECUTED, f"none of its {len(steps)} steps", content(*steps, answer=answer), blank, tools)


def test_what_cannot_be_executed_is_rejected_and_not_believed(seen, tools):
    view, found = seen
    assert "ocr" not in offered(tools)
    rejected(NOT_EXECUTED, "not offered", content(step("ocr", "", [], "STOP")), view, tools)
    rejected(NOT_EXECUTED, "no description", content(step("grounding", "unicorn")), view, tools)
    two = [box for boxes in found.values() for box in boxes][:2]
    rejected(NOT_EXECUTED, "looks at one", content(step("referring", "", two, "circle")), view, tools)
    rejected(NOT_EXECUTED, "no area", content(step("referring", "", [(0.5, 0.5, 0.5, 0.6)], "circle")), view, tools)
    rejected(NOT_EXECUTED, "what is in its box", content(step("referring", "", two[:1])), view, tools)


def test_ocr_compares_what_is_read():
    backends = replace(classical(), read=lambda image: ["OPEN 24", "hours"])
    view, tools = View(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), backends), Toolset(backends)
    assert "ocr" in offered(tools)
    execute(content(step("ocr", "the sign", [], "open 24 hours")), view, tools)
    rejected(CONTRADICTED, "ocr reads", content(step("ocr", "the sign", [], "closed")), view, tools)
    rejected(CONTRADICTED, "ocr reads", content(step("ocr", "the sign", [], "  ")), view, tools)


@pytest.mark.parametrize(
    "change",
    [
        {"skills": ["flying"]}, {"form": "a poem"}, {"steps": [{"function": "eval"}]}, {"question": ""},
        {"score": 10}, {"steps": None}, {"objects": ["x" * 81]},
    ],
)  # fmt: skip
def test_fields_are_validated(change):
    good = content(step("none")).model_dump()
    with pytest.raises(ValidationError):
        Content.model_validate(good | change)
    bad_box = {"function": "referring", "argument": "", "boxes": [[0, 0, 5, 5]], "result": "", "description": ""}
    with pytest.raises(ValidationError):
        Step.model_validate(bad_box)
