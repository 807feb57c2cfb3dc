"""Which versions stay: the rule of each evolution, both orders, and no score from garbage."""

from __future__ import annotations

import pytest

from mmkd.synthesis.evolving.elimination import Comparison, Ruling, ToolsJudge, eliminate, ruling_of
from mmkd.synthesis.evolving.items import OPEN, Content, Step, Version
from mmkd.synthesis.evolving.outcomes import Rejection, Task
from mmkd.synthesis.evolving.rules import Questions, check_rules
from mmkd.synthesis.requests import Answer, Request, Status
from mmkd.synthesis.same_answer import same_answer


def ruling(child: float, parent: float, **fields) -> Ruling:
    return Ruling(difficulty=child, parent_difficulty=parent, **({"right": True, "better": True} | fields))


@pytest.mark.parametrize(
    ("direction", "given", "kind"),
    [
        ("perceptual", ruling(5, 5, better=False), None),  # equal difficulty is its objective, not an improvement
        ("perceptual", ruling(5, 4, turned=True), None),
        ("perceptual", ruling(7, 4), "not of equal difficulty"),
        ("perceptual", ruling(3, 5), "not of equal difficulty"),
        ("perceptual", ruling(5, 5, right=False), "judged wrong"),
        ("cognitive", ruling(6, 5), None),
        ("cognitive", ruling(6, 5, right=False), "judged wrong"),
        ("cognitive", ruling(6, 5, better=False), "no better than its parent"),
        ("cognitive", ruling(4, 5), "easier than its parent"),
        ("interaction", ruling(5, 5), None),
        ("interaction", ruling(6, 5, better=False, turned=True), "the judge turns with the order"),
        ("interaction", Ruling(error="not the form asked for: .."), "no ruling"),
    ],
)
def test_each_evolution_has_its_rule(direction, given, kind):
    if kind is None:
        eliminate(direction, given, 1.0)
        return
    with pytest.raises(Rejection) as caught:
        eliminate(direction, given, 1.0)
    assert caught.value.kind == kind


GROUNDED = ("grounding", "dog", "")


@pytest.mark.parametrize(
    ("steps", "answer", "form", "borne"),
    [
        ([GROUNDED], "a dog", OPEN, True),
        ([GROUNDED, ("none", "", "")], "yes", OPEN, True),
        ([GROUNDED, ("calculate", "#1 * 2", "4")], "four", OPEN, True),
        ([("referring", "", "brown dog")], "brown", OPEN, True),
        ([GROUNDED], '{"answer": "ein Hund"}', "translation", True),
        ([GROUNDED, ("calculate", "1 + 1", "2")], "a dog", "relative distance", True),  # in words of a look
        ([("calculate", "1 + 1", "2")], "2", OPEN, False),
        ([("calculate", "1 + 1", "2"), ("none", "", "")], "a dog with a hat", OPEN, False),
        ([("calculate", "1 + 1", "2"), ("calculate", "#1 + 1", "3")], "3", "multiple choice", False),
        ([GROUNDED, ("calculate", "1 + 1", "2")], "2", OPEN, False),
        ([GROUNDED, ("calculate", "1 + 1", "2")], "B", "multiple choice", False),
        ([GROUNDED], "a dog with a hat", OPEN, False),
    ],
)  # fmt: skip
def test_a_step_that_looks_has_to_bear_the_answer(steps, answer, form, borne):
    made = [
        Step(function=name, argument=argument, boxes=[], result=result, description="")
        for name, argument, result in steps
    ]
    child = Content(objects=["dog"], skills=[], steps=made, form=form, question="who is it?", answer=answer)
    parent = Version(id="i/v0", content=child)
    task = Task("i", 1, "cognitive", parent, b"", None)  # type: ignore[arg-type]
    [found] = ToolsJudge().compare([(task, child)])
    assert found.right == borne
    if not borne:
        with pytest.raises(Rejection, match=r"judged wrong: (none of its executed|its answer holds what)"):
            eliminate("cognitive", found, 1.0)


def reply(better: str, first: int, second: int, right=(True, True)) -> Answer:
    points = {"first_difficulty": first, "second_difficulty": second}
    value = Comparison(reason="r", **points, first_right=right[0], second_right=right[1], better=better)
    return Answer(Request("x", ()), "k", Status.DONE, "m", "{}", value)


def test_both_orders_have_to_agree():
    straight = ruling_of(reply("second", 4, 6), reply("first", 8, 5))  # order 1 shows the new version first
    assert (straight.difficulty, straight.parent_difficulty, straight.better, straight.turned) == (7, 4.5, True, False)
    turned = ruling_of(reply("second", 4, 6), reply("second", 6, 4))
    assert (turned.better, turned.turned) == (False, True)
    wrong = ruling_of(reply("second", 4, 6), reply("first", 6, 4, right=(False, True)))
    assert not wrong.right


def test_one_reply_that_is_none_leaves_no_score():
    failed = Answer(Request("x", ()), "k", Status.REJECTED, "m", kind="empty reply", reason="no text")
    for pair in ((failed, reply("first", 5, 5)), (reply("first", 5, 5), failed)):
        assert ruling_of(*pair) == Ruling(error="empty reply: no text")


def content(steps=1, objects=("cat",), skills=("grounding",), form="open question", question="what?") -> Content:
    one = Step(function="none", argument="", boxes=[], result="", description="look")
    return Content(
        objects=list(objects), skills=list(skills), steps=[one] * steps, form=form, question=question, answer="a"
    )


@pytest.mark.parametrize(
    ("direction", "parent", "child", "good"),
    [
        ("perceptual", content(), content(objects=["dog"], question="q"), True),
        ("perceptual", content(), content(objects=["Cat."], question="q"), False),
        ("perceptual", content(), content(steps=2, objects=["dog"], question="q"), False),
        ("perceptual", content(), content(objects=["dog"], form="fill-in", question="q"), False),
        ("perceptual", content(steps=0), content(steps=3, objects=["dog"], question="q"), True),
        ("cognitive", content(), content(steps=2, question="q"), True),
        ("cognitive", content(), content(skills=["grounding", "ocr"], question="q"), True),
        ("cognitive", content(), content(question="q"), False),
        ("cognitive", content(2), content(1, skills=["grounding", "ocr"], question="q"), False),
        ("interaction", content(), content(form="multiple choice", question="q"), True),
        ("interaction", content(), content(question="q"), False),
        ("interaction", content(form="fill-in"), content(form="fill-in", question="q"), False),
        ("interaction", content(form="fill-in"), content(question="q"), False),
        ("cognitive", content(), content(steps=2, question="What"), False),  # its parent, word for word
    ],
)
def test_fields_have_to_show_the_evolution_asked_for(direction, parent, child, good):
    if good:
        check_rules(direction, parent, child)
    else:
        with pytest.raises(Rejection):
            check_rules(direction, parent, child)


def test_a_question_is_asked_of_an_image_once():
    asked = Questions()
    asked.add("a" * 64, "How many cats?")
    asked.check("b" * 64, "How many cats?")
    with pytest.raises(Rejection, match="already"):
        asked.check("a" * 64, "how many  cats")


@pytest.mark.parametrize(
    ("said", "answer", "same"),
    [
        ("Red.", "red", True), ("It is red.", "red", True), ("blue", "red", False), ("", "red", False),
        ("3", "13", False),
        ("the answer would probably have to be red or blue or green or teal, who can say?", "red", False),
        ("a dog runs over the grass", "a dog runs over green grass", True),
        ("a cat sits on the mat", "a dog runs over green grass", False), ("(b)", "b", True), ("  ", "!", False),
    ],
)  # fmt: skip
def test_when_a_blind_reply_is_the_answer(said, answer, same):
    assert same_answer(said, answer) is same
