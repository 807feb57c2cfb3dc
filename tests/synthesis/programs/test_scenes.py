"""The classical back end on scenes, whose truth is known by construction."""

from __future__ import annotations

import pytest

from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.parts import Thing
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.tools import View, installed
from mmkd.synthesis.programs.tools.places import STEPS

CELL = 64


@pytest.mark.parametrize(
    ("split", "grid", "scenes"), [("train", 3, 100), ("validation", 3, 100), ("train", 4, 30), ("validation", 2, 30)]
)
def test_every_thing_is_found_with_its_colour_shape_and_place(make_scene, split, grid, scenes):
    backend, right, things, extra = classical().detect, 0, 0, 0
    for index in range(scenes):
        one = make_scene(split, index, 0, grid, questions=1)
        found = {thing.cell: thing for thing in backend.detect(one.image(), "thing")}
        for thing in one.things:
            things += 1
            seen = found.get((thing.row, thing.column))
            right += seen is not None and seen.label == f"{thing.color} {thing.shape}" and _inside(seen.box, thing)
        extra += len(found.keys() - {(thing.row, thing.column) for thing in one.things})
    assert things > 2 * scenes
    assert right / things >= 0.995
    assert extra == 0


def _inside(box, thing) -> bool:
    left, top = thing.column * CELL, thing.row * CELL
    return left <= box[0] < box[2] <= left + CELL and top <= box[1] < box[3] <= top + CELL


def test_next_to_means_the_cell_that_touches(make_scene):
    tools = installed()
    for index in range(10):
        one = make_scene("train", index, 1)
        truth = {(thing.row, thing.column): f"{thing.color} {thing.shape}" for thing in one.things}
        view = View(one.image(), classical())
        for thing in view.things(view.whole, "thing"):
            for side, (down, right) in STEPS.items():
                name = {"left": "left_of", "right": "right_of"}.get(side, side)
                found = tools[name].function(view, thing)
                assert (found.label if found else None) == truth.get((thing.cell[0] + down, thing.cell[1] + right))
                assert found is None or isinstance(found, Thing)


def test_a_right_program_answers_every_question_of_every_type(make_scene, runner, solve):
    types = set()
    for split, index in [*(("train", i) for i in range(15)), *(("test", i) for i in range(10))]:
        one = make_scene(split, index, 2)
        image = one.image()
        for question in one.questions:
            outcome = runner.run(solve(question.text), image, question.text)
            assert outcome.verdict is Verdict.RAN, (question.text, outcome.message)
            assert as_text(outcome.answer) == question.answer, (one.id, question.text)
            types.add(question.type)
    assert types == {"count", "existence", "comparison", "spatial", "two_hop"}


def test_a_crop_of_a_scene_is_seen_too(make_scene, runner):
    one = make_scene("train", 0, 0)
    thing = one.things[0]
    left, top = thing.column * CELL, thing.row * CELL
    program = f"def answer(image):\n    return find(crop([{left}, {top}, {left + CELL}, {top + CELL}]), 'thing')"
    outcome = runner.run(program, one.image())
    (found,) = outcome.events[-1].found
    assert found.label == f"{thing.color} {thing.shape}"
    assert _inside(found.box, thing)
