"""Rationales say what events hold, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.evidence import claims, concludes, unsupported
from mmkd.synthesis.programs.parts import Picture, Thing
from mmkd.synthesis.programs.rationale import SENTENCES, rationale, tell
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.runner import Outcome
from mmkd.synthesis.programs.tools import installed

CIRCLE = Thing("thing:0", (10, 20, 30, 40), "red circle", 1.0, "image:0")
SQUARE = Thing("thing:1", (50, 20, 70, 40), "blue rectangle", 1.0, "image:0")
FOUND = Event(0, "find", 1, {"image": "image:0", "name": "red"}, ["thing:0"], (), (CIRCLE,), True)
BESIDE = Event(1, "right_of", 1, {"thing": "thing:0"}, "thing:1", (CIRCLE,), (SQUARE,), True)
OUTCOME = Outcome("what shape is right of the red circle?", "rectangle", (FOUND, BESIDE), Verdict.VERIFIED)


def test_the_template_tells_the_trace_in_order():
    assert rationale(OUTCOME) == (
        'There is 1 "red": the red circle at [10, 20, 30, 40]. '
        "The blue rectangle at [50, 20, 70, 40] is right of the red circle at [10, 20, 30, 40]. "
        "So the answer is rectangle."
    )


def test_without_boxes_it_says_the_same_of_things_that_it_does_not_place():
    assert rationale(OUTCOME, boxes=False) == (
        'There is 1 "red": the red circle. The blue rectangle is right of the red circle. So the answer is rectangle.'
    )
    asked = Event(2, "query", 1, {"question": "what is it?"}, "a cat", (Picture("image:1", (0, 0, 9, 9)),), (), True)
    assert tell([asked], "cat", boxes=False) == (
        'Asked "what is it?", a part of the image gives "a cat". So the answer is cat.'
    )


@pytest.mark.parametrize(
    "draft",
    [
        "The red circle at [10, 20, 30, 40] has the blue rectangle on its right. So it is a rectangle.",
        "One red circle is seen; right of it is something blue. So it is a rectangle.",
        'I looked for "red" and found 1. The answer: Rectangle.',
    ],
)
def test_a_draft_that_is_covered_is_kept(draft):
    assert rationale(OUTCOME, draft) == draft


@pytest.mark.parametrize(
    ("draft", "claim"),
    [
        ("There are 3 red circles.", "number 3"),
        ("There are three red circles.", "number 3"),
        ("The circle is at [10, 20, 30, 41].", "box [10.0, 20.0, 30.0, 41.0]"),
        ("The circle is at (10, 20, 30, 41).", "box [10.0, 20.0, 30.0, 41.0]"),
        ("Its left edge is at 10.", "number 10"),  # a box's numbers say nothing alone
        ("The green circle.", "color green"),
        ("The grey circle.", "color gray"),
        ("The Purple circle.", "color purple"),
        ('A sign reads "exit".', "quote 'exit'"),
        ("A sign reads 'exit now'.", "quote 'exit now'"),
        ("A sign reads “exit”.", "quote 'exit'"),
        ('It is "red rectangle".', "quote 'red rectangle'"),
        ("It is -1 away.", "number -1"),
        ("It is 1.5 away.", "number 1.5"),
        ("It is 5px wide.", "number 5"),
        ("It is in the 3rd row.", "number 3"),
        ("It is row3.", "number 3"),
        ("It is ½ as wide.", "number 0.5"),
        ("There are thirty red circles.", "number 30"),
        ("There are twenty-one red circles.", "number 21"),
        ("There are a hundred red circles.", "number 100"),
        ("There are dozens.", "number 12"),
        ("Half of it is red.", "number 0.5"),
        ("A pair of circles.", "number 2"),
        ("The second circle.", "number 2"),
        ("In the thirty-third row.", "number 33"),
        ("In the fortieth row.", "number 40"),
        ("The circle is crimson.", "color crimson"),
        ("The LightSkyBlue circle.", "color lightskyblue"),
        ("The darkgrey circle.", "color darkgray"),
        ("The scarlet circle.", "color scarlet"),
        ("The sign says `STOP`.", "quote 'stop'"),
        ("The sign says «HALT».", "quote 'halt'"),
        ("The sign says „STOPP“.", "quote 'stopp'"),
        ("The sign says ‚stopp‘.", "quote 'stopp'"),
        ("The sign says 「止」.", "quote '止'"),
    ],
)
def test_a_made_up_claim_is_found_and_the_template_told_instead(draft, claim):
    assert unsupported(draft, OUTCOME.events, OUTCOME.question, OUTCOME.answer) == [claim]
    assert rationale(OUTCOME, draft) == tell(OUTCOME.events, OUTCOME.answer)


@pytest.mark.parametrize(
    ("answer", "draft", "kept"),
    [
        ("rectangle", "It is a rectangle.", True), ("rectangle", "A circle is left of the rectangle.", False),
        ("rectangle", "So the answer is circle.", False), ("rectangle", "A rectangle. So it is red.", False),
        ("rectangle", "So the answer is not rectangle.", False),
        ("rectangle", "It is no rectangle.", False), ("rectangle", "It isn't a rectangle.", False),
        ("rectangle", "Both are rectangles.", False),
        ("blue", "So it is blue.", True), ("blue", "So it is blue or red.", False), ("gray", "So it is Grey.", False),
        (True, "Yes, there is.", True), (True, "There is.", False),
        (False, "There is one. So the answer is yes.", False), (1, "There is a red circle.", False),
        (False, "So the answer is no.", True), (True, "So the answer is yes and no.", False),
        (1, "There is one.", True), (1, "There is 1.", True), (1, "There is no red circle. So it is no.", False),
        (2, "There are 1 and 2.", False), (1.0, "It is 1.", True),
        ([10, 20, 30, 40], "It is at [10, 20, 30, 40].", True), ([10, 20, 30, 40], "It is there.", False),
    ],
)  # fmt: skip
def test_a_draft_whose_conclusion_is_not_the_answer_is_not_taken(answer, draft, kept):
    outcome = replace(OUTCOME, question="1, 2, red, blue?", answer=answer)
    assert unsupported(draft.replace("Grey", "blue"), outcome.events, outcome.question, answer) == []
    assert (rationale(outcome, draft) == draft) == kept


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(-99, 99), st.booleans(), st.sampled_from(["red", "a circle", "yes"])))
def test_the_template_concludes_with_the_answer(answer):
    assert concludes(tell(OUTCOME.events, answer), answer)


def test_an_empty_or_endless_draft_is_not_taken():
    assert rationale(OUTCOME, "  ") == rationale(OUTCOME, "red " * 1000) == rationale(OUTCOME)


def test_an_apostrophe_opens_no_quotation():
    assert claims("the circle's edge and the boxes' sides").quotes == frozenset()


def test_every_tool_has_a_sentence():
    assert set(SENTENCES) == set(installed())


TEXT = st.text(max_size=30) | st.sampled_from(
    ["«a» „b“", "3rd ½ `c", "twenty", "one", 'say "x"', "it's", "'a' 'b'", "“q”", "12 red", "[1, 2, 3, 4]", "(1,2,3,4)"]
)
NUMBER = st.integers(-1000, 1000) | st.floats(-1e5, 1e5).map(lambda x: round(x, 3))
BOX = st.tuples(*[st.integers(0, 2000)] * 4)
LABEL = st.sampled_from(["red circle", "gray triangle", "two 7 dogs", "thing", 'odd "label"'])
THING = st.builds(Thing, st.just("thing:0"), BOX, LABEL, st.just(1.0), st.just("image:0"))
CROP = st.builds(Picture, st.just("image:1"), BOX)


@st.composite
def events(draw) -> Event:
    name = draw(st.sampled_from(sorted(SENTENCES)))
    thing, other = draw(THING), draw(THING)
    found, many = draw(st.lists(THING, max_size=9)), {"find", "count", "exists", "neighbours"}
    arguments = {
        "name": draw(TEXT), "property": draw(TEXT), "question": draw(TEXT), "expression": draw(TEXT),
        "first": draw(NUMBER), "second": draw(NUMBER), "how": draw(st.sampled_from(["more", "fewer", "equal"])),
    }  # fmt: skip
    results = {
        "count": len(found), "exists": bool(found), "distance": draw(NUMBER), "depth": draw(NUMBER),
        "calculate": draw(NUMBER), "verify_property": draw(st.booleans()), "compare": draw(st.booleans()),
        "query": draw(TEXT), "knowledge": draw(TEXT), "ocr": draw(st.lists(TEXT, max_size=3)),
    }  # fmt: skip
    given_parts = (thing, other) if name == "distance" else (draw(st.sampled_from([thing, draw(CROP)])),)
    one = (draw(CROP),) if name == "crop" else tuple(found[:1])
    return Event(
        0, name, 1, arguments, results.get(name, "x"), given_parts, tuple(found) if name in many else one, True
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), max_size=5), st.one_of(NUMBER, TEXT, st.booleans()), TEXT)
def test_the_template_never_says_what_events_do_not_hold(trace, answer, question):
    text = tell(trace, answer)
    assert unsupported(tell(trace, answer, boxes=False), trace, "", answer) == []
    assert unsupported(text, trace, question, answer) == []


@pytest.mark.parametrize("name", ['0"0', '1"2', 'a "red" thing', "“4”5"])
def test_quotes_inside_a_name_neither_end_its_quotation_nor_make_new_words(name):
    event = replace(FOUND, arguments={"image": "image:0", "name": name})
    assert unsupported(tell([event], 1), [event], "", 1) == []


def test_a_tool_of_another_package_is_told_too():
    event = replace(FOUND, tool="my_tool", result=[1, "red"])
    assert tell([event], 1) == 'my tool gives "1, red". So the answer is 1.'
    assert unsupported(tell([event], 1), [event], "", 1) == []


PLACED = {"blue rectangle": (40, 85, 80, 115), "red circle": (100, 80, 140, 120), "green rectangle": (105, 20, 135, 60),
          "black triangle": (300, 80, 340, 120)}  # fmt: skip
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
SAID = re.compile(
    r"(?:The (?P<found>.+)|No \"(?P<asked>.+)\"|Nothing) is (?:directly )?(?P<side>.+? of|\w+) the (?P<of>.+)"
)


def beyond(one: str, side: str, of: str) -> bool:
    axis, sign = SIDES[side]
    centre = [(PLACED[name][axis] + PLACED[name][axis + 2]) / 2 for name in (one, of)]
    return (centre[0] - centre[1]) * sign > 0


def near(one: str, side: str, of: str) -> bool:
    """Beyond it, in line with it, and no farther away than either is wide: none of these is between the two."""
    across = 1 - SIDES[side][0]
    first, second = PLACED[one], PLACED[of]
    in_line = min(first[across + 2], second[across + 2]) > max(first[across], second[across])
    return beyond(one, side, of) and in_line and "black triangle" not in (one, of)


@pytest.mark.parametrize("of", PLACED)
@pytest.mark.parametrize("tool", ["left_of", "right_of", "above", "below"])
def test_what_is_said_to_stand_beside_something_does_so_and_what_is_said_not_to_does_not(runner, tool, of):
    picture = Image.new("RGB", (400, 300), (240, 240, 240))
    draw = ImageDraw.Draw(picture)
    for name, (left, top, right, bottom) in PLACED.items():
        color, shape = name.split()
        fill = (0, 255, 0) if color == "green" else color
        if shape == "triangle":
            draw.polygon([((left + right) // 2, top), (left, bottom - 1), (right - 1, bottom - 1)], fill=fill)
        else:
            (draw.rectangle if shape == "rectangle" else draw.ellipse)((left, top, right - 1, bottom - 1), fill=fill)
    for name in (None, "yellow shape", *PLACED):
        call = f"{tool}(find(image, {of!r})[0]" + (")" if name is None else f", {name!r})")
        done = runner.run(f"def answer(image):\n    return {call} is None", picture)
        said = SAID.fullmatch(tell(done.events, True, boxes=False).split(". ")[1])
        assert said, tell(done.events, True, boxes=False)
        assert said["of"] == of
        if said["found"]:
            assert beyond(said["found"], said["side"], of)
            assert name in (None, said["found"])
        else:
            assert said["asked"] == name
            looked_for = [one for one in PLACED if one != of and name in (None, one)]
            assert not any(near(one, said["side"], of) for one in looked_for)
    done = runner.run(
        f"def answer(image):\n    return len(neighbours(find(image, {of!r})[0], 'yellow shape'))", picture
    )
    assert tell(done.events, 0, False).split(". ")[1] == f'No "yellow shape" is next to the {of}'
