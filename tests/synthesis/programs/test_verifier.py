"""Right for a reason: every rejection with its reason, and what passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from mmkd.synthesis.programs.answers import as_text, score
from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.backends.classical import ClassicalDetector
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Reason, Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.programs.verifier import blank, verify
from mmkd.synthesis.programs.wording import Unjudged, may_say_the_same


def program(*lines: str) -> str:
    return "\n    ".join(["def answer(image):", *lines])


@pytest.fixture(scope="module")
def scene(make_scene):
    """Green things in three forms, one black triangle, no teal."""
    return make_scene("train", 0, 0)


def verdicts(runner, programs, image, truth, **options) -> list[Reason | None]:
    outcomes = verify(runner, programs, image, "a question?", truth, **options)
    for one in outcomes:
        assert (one.reason is None) == (one.verdict is Verdict.VERIFIED)
    return [one.reason for one in outcomes]


def test_a_right_grounded_program_is_verified(scene, runner):
    truth = str(sum(thing.color == "green" for thing in scene.things))
    assert truth != "0"
    assert verdicts(runner, [program("return count(image, 'green')")], scene.image(), truth) == [None]


@pytest.mark.parametrize(
    ("source", "truth", "reason"),
    [
        (program("return count(image, 'black')"), "7", Reason.WRONG),
        (program("return 'triangle'"), "triangle", Reason.NOT_GROUNDED),
        (program("return compare(2, 'more', 1)"), "yes", Reason.NOT_GROUNDED),
        (program("count(image, 'green')", "return 'triangle'"), "triangle", Reason.UNUSED),
        (program("x = find(image, 'thing')[0]", "return 'yes'"), "yes", Reason.UNUSED),  # fails on a blank picture
        (program("return 'triangle' if count(image, 'green') < 99 else 'circle'"), "triangle", Reason.UNMOVED),
        (program("return count(image, 'teal')"), "0", Reason.UNMOVED),
        (program("return exists(image, 'green')"), "yes", Reason.ALONE),
        (program("return find(image, 'teal')[0]"), (0, 0, 9, 9), Reason.RAISED),
        (program("return cuont(image, 'teal')"), "0", Reason.UNKNOWN_NAME),
    ],
)
def test_each_rejection_has_its_reason(scene, runner, source, truth, reason):
    assert verdicts(runner, [source], scene.image(), truth) == [reason]


def test_yes_and_no_need_two_different_programs_that_agree(scene, runner):
    yes, image = program("return exists(image, 'green')"), scene.image()
    renamed = yes.replace("image", "picture")
    longer = program("unused = 1", "number = count(image, 'red')", "found = exists(image, 'green')", "return found")
    assert verdicts(runner, [yes, longer], image, "yes") == [Reason.ALONE, Reason.ALONE]
    other = program("return count(image, 'green') > 0")
    assert verdicts(runner, [yes, renamed], image, "yes") == [Reason.ALONE, Reason.ALONE]
    assert verdicts(runner, [yes, other], image, "yes") == [None, None]
    ungrounded = program("return True")
    assert verdicts(runner, [yes, ungrounded], image, "yes") == [Reason.ALONE, Reason.NOT_GROUNDED]


def test_answers_on_offer_need_two_programs_too(scene, runner):
    source = program("return query(find(image, 'black triangle')[0], 'what color is it?')")
    assert verdicts(runner, [source], scene.image(), "black") == [None]
    assert verdicts(runner, [source], scene.image(), "black", choices=["black", "red"]) == [Reason.ALONE]


def test_absence_is_verified_by_another_picture(scene, runner, make_scene):
    none = program("return count(image, 'teal')")
    other = next(
        one for one in (make_scene("train", i, 0) for i in range(1, 50)) if any(t.color == "teal" for t in one.things)
    )
    image = scene.image()
    assert verdicts(runner, [none], image, "0", controls=[blank(image), other.image()]) == [None]


@pytest.mark.parametrize("reason", [Reason.WORKER_DIED, Reason.TIME, Reason.TOOL_ERROR])
def test_a_control_picture_that_was_not_tried_says_nothing_and_another_may(scene, runner, reason):
    class Flaky:
        """Breaks down on the second picture of a program."""

        def __init__(self):
            self.pictures, self.tools = 0, runner.tools

        def run(self, program, image, question=""):
            self.pictures += 1
            done = runner.run(program, image, question)
            return replace(done, verdict=Verdict.FAILED, reason=reason) if self.pictures == 2 else done

    truth = str(sum(thing.color == "green" for thing in scene.things))
    source, image = program("return count(image, 'green')"), scene.image()
    assert verdicts(Flaky(), [source], image, truth) == [Reason.UNTRIED]
    assert verdicts(Flaky(), [source], image, truth, controls=[blank(image)] * 2) == [None]
    same = [blank(image), image]  # what is left of the control pictures shows nothing
    assert verdicts(Flaky(), [source], image, truth, controls=same) == [Reason.UNTRIED]


def test_a_program_that_fails_of_itself_where_there_is_nothing_has_moved(scene, runner):
    source = program("return query(image, 'what color is it?')")
    truth = runner.run(source, scene.image()).answer
    assert verdicts(runner, [source], scene.image(), truth) == [None]


def test_without_a_label_nothing_is_wrong_but_luck_is_still_refused(scene, runner):
    sources = [program("return count(image, 'black')"), program("return 3")]
    assert verdicts(runner, sources, scene.image(), None) == [None, Reason.NOT_GROUNDED]


def test_a_box_is_right_from_half_overlap(scene, runner):
    source = program("return find(image, 'black triangle')[0]")
    image = scene.image()
    left, top, right, bottom = runner.run(source, image).answer
    assert verdicts(runner, [source], image, (left, top, right + 4, bottom)) == [None]
    assert verdicts(runner, [source], image, (right, top, right + 40, bottom)) == [Reason.WRONG]


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (3, "3", 1.0),
        (3.0, "3", 1.0),
        (3, "three", 0.0),
        (True, "yes", 1.0),
        (True, "1", 0.0),
        (1, "yes", 0.0),
        (-1, "1", 0.0),
        (1.5, "15", 0.0),
        ("Red!", "red", 1.0),
        ("red", "blue", 0.0),
        (["a", 2], "a, 2", 1.0),
        ([0, 0, 10, 10], (0, 0, 10, 20), 0.5),
        ("red", (0, 0, 1, 1), 0.0),
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),  # leaving one out: 2/3 eight times, 1/3 twice
        ("red", ["blue"] * 10, 0.0),
        ("The red one.", ["red one"] * 3 + ["red"] * 7, 0.9),  # 1 seven times, 2/3 three times
        (2, ["two"] * 10, 1.0),
    ],
)
def test_scores(answer, truth, expected):
    assert score(answer, truth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "truth", "asked"),
    [
        ("a three-sided figure", "triangle", True), (["red", "blue"], "red and blue", True), ("2 cats", "cats", True),
        ("2 cats", "two cats", True), ("2 cats", "3 cats", False), ("3", "three", False), (3, "three", False),
        ("twelve", "a dozen", False), ("tree", "three", False), ("yes", "sure", False), ("sure", "yes", False),
        (True, "sure", False), ("black", "dark", False), ("dark", "Black.", False), ("", "dark", False),
        ([1, 2, 3, 4], "a box", False), ("a box", (1, 2, 3, 4), False), ("red", ["crimson"] * 9, False),
        ("long " * 99, "short", False),
    ],
)  # fmt: skip
def test_a_judge_may_be_asked_about_wording_alone(answer, truth, asked):
    assert may_say_the_same(answer, truth, ["black"]) == asked


def test_a_judge_decides_on_words_and_on_nothing_else(scene, runner):
    """It is asked about a program that looked, with the label and the answer; what it cannot say is never a pass."""
    asked = []

    def judge(question: str, label: str, answer: str) -> bool:
        asked.append((question, label, answer))
        if label == "garbled":
            raise Unjudged("not the form asked for")
        return label == "three-sided"

    shape, image = program("return query(find(image, 'black triangle')[0], 'what shape is it?')"), scene.image()
    blind, counting = program("return 'triangle'"), program("return count(image, 'black')")
    options = {"judge": judge, "choices": ["yes", "no", "round"]}
    assert verdicts(runner, [shape, blind], image, "three-sided", **options) == [None, Reason.WRONG]
    assert verdicts(runner, [shape], image, "square", **options) == [Reason.WRONG]
    assert verdicts(runner, [shape], image, "garbled", **options) == [Reason.UNJUDGED]
    assert [label for _, label, _ in asked] == ["three-sided", "square", "garbled"]
    assert {(question, answer) for question, _, answer in asked} == {("a question?", "triangle")}
    for source, truth in ((shape, "triangle"), (shape, "round"), (shape, "yes"), (counting, "a single one")):
        verdicts(runner, [source], image, truth, **options)
    verdicts(runner, [shape], image, "B", offered=["round figure", "three-sided"], **options)
    assert len(asked) == 3
    assert verdicts(runner, [shape], image, "three-sided") == [Reason.WRONG]
    [held] = verify(runner, [shape], image, "a question?", "three-sided", judge=judge)
    assert (held.judged, held.message) == (True, "'three-sided' in other words, says the judge.")
    assert Outcome.from_dict(held.to_dict()) == held


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("a dog", "B", True),
        ("B", "a dog", True), ("(b)", "a dog", True), ("B. a dog", "B", True), ("A dog!", "b)", True),
        ("a cat", "B", False), ("A", "a dog", False), ("B. a cat", "B", False), ("E", "B", False),
        ("dog", "a dog", False),
        (2, "C", True), (2.0, "2", True), ("2", "c", True), (True, "D", True), ("yes", "D", True), ("C", "D", False),
    ],
)  # fmt: skip
def test_an_answer_and_a_label_name_a_choice_by_its_letter_or_its_words(answer, label, right):
    assert score(answer, label, ["a cat", "a dog", "2", "yes"]) == right


def test_a_choice_that_is_itself_a_letter_is_meant_before_the_letters_and_signs_are_told_apart():
    assert score("A", "A", ["B", "A"]) == 1.0
    assert score("A", "B", ["B", "A"]) == 0.0
    assert [score(sign, "<", ["<", ">", "="]) for sign in ("<", ">", "=", "A", "B")] == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_all_choices_on_offer_need_two_programs_that_name_the_same_one(scene, runner):
    shape = "query(find(image, 'black triangle')[0], 'what shape is it?')"
    words, letter = program(f"return {shape}"), program(f"return 'A' if {shape} == 'triangle' else 'B'")
    offered = ["triangle", "circle"]
    options = {"choices": ["yes", "no", *offered], "offered": offered}
    image = scene.image()
    assert verdicts(runner, [words], image, "A", **options) == [Reason.ALONE]
    assert verdicts(runner, [words, letter], image, "A", **options) == [None, None]
    assert verdicts(runner, [words, letter], image, "circle", **options) == [Reason.WRONG, Reason.WRONG]
    lucky = program("count(image, 'black')", "return 'A'")  # it looks, and says A whatever it sees
    assert verdicts(runner, [words, lucky], image, "A", **options) == [Reason.ALONE, Reason.UNUSED]


def test_the_answers_of_several_people_count_from_the_accuracy_that_is_asked_for(scene, runner):
    source = program("return query(find(image, 'black triangle')[0], 'what color is it?')")
    answers, image = ["black"] * 2 + ["dark"] * 8, scene.image()  # 0.6
    assert verdicts(runner, [source], image, answers) == [None]
    assert verdicts(runner, [source], image, answers, needed=0.6) == [None]
    assert verdicts(runner, [source], image, answers, needed=0.61) == [Reason.WRONG]


def test_a_full_stop_or_an_article_does_not_take_an_answer_out_of_those_that_could_be_guessed(scene, runner):
    for said in ("Yes.", "the yes"):
        source = program(f"return {said!r} if exists(image, 'green') else 'no'")
        assert verdicts(runner, [source], scene.image(), ["yes"] * 10) == [Reason.ALONE]


def test_answers_as_text():
    assert [as_text(one) for one in (True, False, 3.0, 2.5, "x", [1, "a"])] == ["yes", "no", "3", "2.5", "x", "1, a"]


def test_a_blank_picture_has_one_colour_and_the_same_size(scene):
    image = blank(scene.image())
    assert image.size == scene.image().size
    assert len(image.getcolors()) == 1
    assert isinstance(image, Image.Image)


def test_a_model_that_cannot_tell_without_the_picture_has_looked(scene):
    def ask(image: Image.Image, question: str) -> str:
        return "yes" if len(image.getcolors(1 << 24) or ()) > 1 else "there is nothing to be seen"

    sources = [program("return verify_property(image, 'drawn')"), program("return query(image, 'is it drawn?')")]
    with Runner(Backends(detect=ClassicalDetector(), ask=ask), executor=MontyExecutor(workers=1)) as asking:
        assert verdicts(asking, sources, scene.image(), "yes") == [None, None]
