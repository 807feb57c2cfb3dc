"""The evolver that needs no endpoint: what it writes is true, harder where it should be, and names no held-out pair."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from mmkd.data.scene_questions import HELD_OUT
from mmkd.synthesis.evolving.elimination import bears_answer, difficulty_of
from mmkd.synthesis.evolving.executing import execute
from mmkd.synthesis.evolving.grounded.evolver import Grounded
from mmkd.synthesis.evolving.grounded.forms import FORMS
from mmkd.synthesis.evolving.grounded.plans import answer, plans, text, understood
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.grounded.telling import told
from mmkd.synthesis.evolving.items import DIRECTIONS, OPEN, Content, Version, draw
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection, Task
from mmkd.synthesis.evolving.rules import check_rules
from mmkd.synthesis.programs.backends import Backends, Detection
from mmkd.synthesis.programs.tools import View


def seed_of(question, answer_text) -> Content:
    return Content(objects=[], skills=[], steps=[], form=OPEN, question=question, answer=answer_text)


def test_every_question_of_scenes_is_understood_answered_and_asked_in_the_same_words(make_scene, view_of):
    types = set()
    for index in range(30):
        one = make_scene("train", index, 0, 3)
        sight = Sight(view_of(one))
        for question in one.questions:
            plan = understood(question.text)
            assert answer(plan, sight) == question.answer
            assert text(plan) == question.text
            types.add(question.type)
    assert types == {"count", "existence", "comparison", "spatial", "two_hop"}


def test_a_picture_of_more_things_than_a_step_may_hold_is_set_aside_and_stops_no_run():
    class Crowded:
        """Finds 64 circles in a grid of 8 x 8."""

        def detect(self, image: Image.Image, name: str) -> list[Detection]:
            cells = [(row, column) for row in range(8) for column in range(8)]
            return [Detection("red circle", (8 * c, 8 * r, 8 * c + 8, 8 * r + 8), cell=(r, c)) for r, c in cells]

    view = View(Image.new("RGB", (64, 64)), Backends(detect=Crowded()))
    with pytest.raises(Rejection, match="sees 64 coloured shapes here; at most 50"):
        Grounded(seed=3).seed(seed_of("how many red circles are there?", "64"), view)


def test_every_plan_in_every_form_passes_the_tools(make_scene, view_of, tools):
    seen = set()
    for index in range(3):
        view = view_of(make_scene("train", index, 7, 2))
        sight = Sight(view)
        for steps in range(1, 6):
            found = list(plans(sight, steps))
            for plan, said in found[:: max(1, len(found) // 12)]:
                for form in (OPEN, *FORMS):
                    content = told(plan, form, sight, draw(index, form))
                    if content is None:
                        continue
                    seen.add((plan.kind, form))
                    done = execute(content, view, tools)
                    assert len(done.steps) >= plan.steps == steps
                    assert not bears_answer(done)
                    assert form != OPEN or content.answer == said
    assert {form for _, form in seen} == {OPEN, *FORMS}
    assert {kind for kind, _ in seen} >= {"walk", "exists", "count", "compare", "sum", "sum of three"}


def test_each_evolution_keeps_its_rule_and_none_names_a_held_out_pair(make_scene, view_of):
    evolver, made = Grounded(seed=3), dict.fromkeys(DIRECTIONS, 0)
    for index in range(6):
        one = make_scene("train", index, 1, 3)
        view = view_of(one)
        for number, question in enumerate(one.questions[:4]):
            seed = evolver.seed(seed_of(question.text, question.answer), view)
            parent = Version(id=f"{index}/{number}/v0", content=seed.content, memo=seed.memo)
            tasks = [
                Task(f"{index}/{number}", 1, direction, parent, b"", lambda view=view: view) for direction in DIRECTIONS
            ]
            for task, child in zip(tasks, evolver.propose(tasks)):
                if isinstance(child, Rejection):
                    continue
                made[task.direction] += 1
                check_rules(task.direction, parent.content, child.content)
                was, now = difficulty_of(parent.content), difficulty_of(child.content)
                assert {"perceptual": now == was, "cognitive": now > was, "interaction": now > was}[task.direction]
                told_text = " ".join(
                    [child.content.question, child.content.answer, *(s.description for s in child.content.steps)]
                )
                for pair in re.findall(r"(\w+) (circle|rectangle|triangle)s?\b", told_text):
                    assert pair not in HELD_OUT
    assert min(made.values()) > 12


def test_the_same_task_gives_the_same_version(make_scene, view_of):
    one = make_scene("train", 2, 1, 3)
    view = view_of(one)
    seed = Grounded(3).seed(seed_of(one.questions[0].text, one.questions[0].answer), view)
    parent = Version(id="a/v0", content=seed.content, memo=seed.memo)

    def proposed(number: int) -> list[Proposal | Rejection]:
        tasks = [Task(f"a{n}", 1, "perceptual", parent, b"", lambda: view_of(one)) for n in range(8)]
        return Grounded(number).propose(tasks)

    assert proposed(3) == proposed(3)
    assert proposed(3) != proposed(4)


def test_a_seed_that_the_tools_contradict_is_no_seed(make_scene, view_of):
    one = make_scene("train", 2, 1, 3)
    question = next(q for q in one.questions if q.answer in ("yes", "no"))
    wrong = {"yes": "no", "no": "yes"}[question.answer]
    with pytest.raises(Rejection, match="by the tools, not"):
        Grounded(0).seed(seed_of(question.text, wrong), view_of(one))
    with pytest.raises(Rejection, match="knows questions about scenes"):
        Grounded(0).seed(seed_of("who painted this?", "nobody"), view_of(one))
