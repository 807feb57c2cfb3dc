"""Scenes: their truth read a second time from the list of things, their splits, their balance."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmkd import assets
from mmkd.data.scene_questions import COLORS, HELD_OUT, SHAPES
from mmkd.data.scenes import looks, records, scene, scenes
from mmkd.errors import AssetError, ConfigError

PAIRS = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})s?\b")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@pytest.fixture(scope="module", autouse=True)
def easyvqa() -> Path:
    try:
        return assets.path("easyvqa")
    except AssetError as error:
        pytest.skip(f"easyvqa is not there and cannot be fetched: {error}")


# --- a second reader, which knows the grid as a dict of cells and the wording by regular expressions ------------------


def is_a(cell: tuple[str, str], words: str) -> bool:
    """Whether a (colour, shape) is "red circles", "red shape", "circle" .."""
    wanted = words.removesuffix("s").split()
    return all(word == "shape" or word in cell for word in wanted)


def the(cells: dict, words: str) -> tuple[int, int]:
    places = [place for place, cell in cells.items() if is_a(cell, words)]
    assert len(places) == 1, f"'the {words}' could be any of {places}"
    return places[0]


def step(place: tuple[int, int], direction: str) -> tuple[int, int]:
    return place[0] + STEPS[direction][0], place[1] + STEPS[direction][1]


def read(cells: dict, text: str) -> str:
    """The answer to `text`, from cells {(row, column): (colour, shape)}."""

    def number(words: str) -> int:
        return sum(is_a(cell, words) for cell in cells.values())

    where = "(left of|right of|above|below)"
    if found := re.fullmatch(r"how many (.+) are there\?", text):
        return str(number(found[1]))
    if found := re.fullmatch(rf"is there a (.+) {where} the (.+)\?", text):
        return "yes" if is_a(cells[step(the(cells, found[3]), found[2])], found[1]) else "no"
    if found := re.fullmatch(r"is there a (.+)\?", text):
        return "yes" if number(found[1]) else "no"
    if found := re.fullmatch(r"are there (more|fewer) (.+) than (.+)\?", text):
        one, other = number(found[2]), number(found[3])
        return "yes" if (one > other if found[1] == "more" else one < other) else "no"
    if found := re.fullmatch(r"is the number of (.+) equal to the number of (.+)\?", text):
        return "yes" if number(found[1]) == number(found[2]) else "no"
    found = re.fullmatch(
        rf"what (?:shape is|is the (color) of the shape) {where} the (?:shape that is {where} the )?(.+)\?", text
    )
    assert found, f"nobody can read {text!r}"
    start = the(cells, found[4])
    place = step(step(start, found[3]), found[2]) if found[3] else step(start, found[2])
    assert place != start
    return cells[place][0 if found[1] else 1]


def cells_of(one) -> dict:
    return {(thing.row, thing.column): (thing.color, thing.shape) for thing in one.things}


@pytest.mark.parametrize(("split", "grid"), [("train", 3), ("test", 3), ("test", 2), ("validation", 5)])
def test_every_answer_is_what_a_second_reader_finds_in_the_scene(split, grid):
    kinds = Counter()
    for one in scenes(split, 60, seed=3, grid=grid):
        for question in one.questions:
            assert read(cells_of(one), question.text) == question.answer, (question, cells_of(one))
            kinds[question.type] += 1
    assert set(kinds) == {"count", "existence", "comparison", "spatial", "two_hop"}


def test_a_scene_never_asks_the_same_thing_twice():
    for one in scenes("test", 50, seed=0, questions=30):
        assert len({question.text for question in one.questions}) == len(one.questions) == 30


def test_no_training_or_validation_question_names_a_held_out_pair_and_test_questions_do():
    for split in ("train", "validation"):
        for one in scenes(split, 300, seed=1):
            for question in one.questions:
                assert not set(PAIRS.findall(question.text)) & HELD_OUT, question.text
                assert not question.unseen
    asked = [question for one in scenes("test", 300, seed=1) for question in one.questions]
    for question in asked:
        assert question.unseen == bool(set(PAIRS.findall(question.text)) & HELD_OUT), question.text
    assert 0.08 < sum(question.unseen for question in asked) / len(asked) < 0.3


def test_every_colour_and_shape_is_named_in_training_though_some_pairs_are_not():
    words = Counter(w for one in scenes("train", 300, 1) for q in one.questions for w in re.findall("[a-z]+", q.text))
    assert all(words[word] for word in COLORS)
    assert all(words[word] + words[word + "s"] for word in SHAPES)
    assert {color for color, _ in HELD_OUT} == set(COLORS)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)


def test_no_image_is_shared_between_splits():
    images = {split: {t.image for one in scenes(split, 400, 0) for t in one.things} for split in ("train", "test")}
    images["validation"] = {t.image for one in scenes("validation", 400, 0) for t in one.things}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]
    assert not images["test"] & images["validation"]
    assert {Path(i).parts[-3] for i in images["test"]} == {"test"}
    assert {Path(i).parts[-3] for i in images["train"] | images["validation"]} == {"train"}


def test_a_scene_is_the_same_in_another_process_and_whatever_the_count():
    few, many = list(scenes("train", 3, seed=5)), list(scenes("train", 6, seed=5))
    assert few == many[:3]
    assert scene("train", 2, seed=5) == few[2] != scene("train", 2, seed=6)
    code = (
        "import hashlib; from mmkd.data.scenes import scene; s = scene('train', 2, 5);"
        "print(hashlib.sha256(s.png() + repr(s.questions).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == hashlib.sha256(few[2].png() + repr(few[2].questions).encode()).hexdigest()


def test_the_picture_shows_the_things_that_the_list_names():
    inks = defaultdict(set)
    for one in scenes("test", 60, seed=2):
        picture = np.asarray(one.image())
        assert picture.shape == (192, 192, 3)
        for row in range(3):
            for column in range(3):
                cell = picture[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64].reshape(-1, 3)
                ink = {tuple(map(int, p)) for p in cell[cell.min(1) < 200]}
                thing = next((t for t in one.things if (t.row, t.column) == (row, column)), None)
                assert bool(ink) == bool(thing)
                if thing:
                    common = Counter(map(tuple, cell[cell.min(1) < 200].tolist())).most_common(1)[0][0]
                    inks[thing.color].add(common)
    # EasyVQA paints each colour with one ink; so the looks read off the questions are those of the pixels.
    assert set(inks) == set(COLORS)
    assert all(len(found) == 1 for found in inks.values())
    assert len(set.union(*inks.values())) == len(COLORS)


def test_language_alone_says_little_about_the_answer():
    seen, forms = defaultdict(Counter), defaultdict(Counter)
    for one in scenes("train", 1500, seed=0):
        for q in one.questions:
            seen[q.text][q.answer] += 1
            forms[q.type, q.form][q.answer] += 1
    asked = [q for one in scenes("test", 300, seed=0) for q in one.questions]
    guess = [(seen.get(q.text) or forms[q.type, q.form]).most_common(1)[0][0] == q.answer for q in asked]
    assert sum(guess) / len(guess) < 0.45
    yes_no = Counter(q.answer for q in asked if q.answer in ("yes", "no"))
    assert 0.45 < yes_no["yes"] / yes_no.total() < 0.55


def test_training_records_hold_a_scene_each_and_test_records_a_question_each():
    (train, _) = records("train", 2, seed=0, questions=4, size=96)
    assert [turn.role for turn in train.turns] == ["user", "assistant"] * 4
    assert Image.open(io.BytesIO(train.images[0])).size == (96, 96)
    test = records("test", 2, seed=0, questions=5)
    assert len(test) == 10 == len({record.id for record in test})
    assert {record.task for record in test} <= {"count", "existence", "comparison", "spatial", "two_hop"}
    assert test[0].turns[0].text == scene("test", 0, 0, questions=5).questions[0].text
    assert test[0].images == test[4].images != test[5].images


def test_a_description_tells_every_cell_and_names_no_held_out_pair():
    (record,) = records("train", 1, seed=3, described=True)
    one = scene("train", 0, seed=3)
    colors, shapes = (
        {(r, c): word for r, row in enumerate(turn.text.split("; ")) for c, word in enumerate(row.split(", "))}
        for turn in record.turns[1::2]
    )
    assert colors.keys() == shapes.keys() == {(row, column) for row in range(3) for column in range(3)}
    things = {(thing.row, thing.column): (thing.color, thing.shape) for thing in one.things}
    assert {at: (colors[at], shapes[at]) for at in things} == things
    empty = colors.keys() - things.keys()
    assert empty
    assert {colors[at] for at in empty} | {shapes[at] for at in empty} == {"nothing"}
    assert not PAIRS.search(" ".join(turn.text for turn in record.turns))


def test_a_picture_does_not_depend_on_how_many_questions_are_asked():
    assert scene("test", 4, 0, questions=1).png() == scene("test", 4, 0, questions=20).png()


def test_questions_can_be_of_some_types_alone_about_the_same_pictures():
    every, some = scene("train", 4, 0), scene("train", 4, 0, types=["existence", "count"])
    assert {one.type for one in some.questions} == {"count", "existence"}
    assert len(some.questions) == len(every.questions)
    assert some.png() == every.png()
    assert scene("train", 4, 0, types=["count", "existence"]) == some


def test_a_scene_without_a_question_of_the_types_makes_no_record():
    asked = [one for one in scenes("train", 40, seed=0, grid=2, types=["two_hop"]) if one.questions]
    assert 0 < len(asked) < 40
    found = records("train", 40, seed=0, grid=2, types=["two_hop"])
    assert [one.id for one in found] == [one.id for one in asked]
    assert [len(one.turns) for one in found] == [2 * len(one.questions) for one in asked]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"split": "dev"}, "train, validation, test"),
        ({"grid": 1}, "2 to 8"),
        ({"size": 200}, "32 to 192"),
        ({"questions": 0}, "at least 1"),
        ({"types": ["count", "colour"]}, "count, existence, comparison, spatial, two_hop"),
        ({"types": []}, "count, existence, comparison, spatial, two_hop"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(wrong, said):
    with pytest.raises(ConfigError, match=said):
        scene(**{"split": "train", "index": 0, "seed": 0, **wrong})


def test_questions_that_contradict_each_other_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    wrong = [["what shape is present?", "circle", 0], ["is there a triangle?", "yes", 0]]
    (tmp_path / "train" / "questions.json").write_text(json.dumps(wrong))
    with pytest.raises(AssetError, match="contradict"):
        looks(tmp_path, "train")


def test_looks_use_what_is_denied_as_well_as_what_is_said(tmp_path):
    (tmp_path / "train").mkdir()
    told = [
        ["is there not a circle?", "yes", 0],
        ["is no triangle present?", "yes", 0],
        ["is there a red shape?", "yes", 0],
    ]
    told += [["what is the blue shape?", "circle", 1], ["is there a circle?", "no", 2]]
    (tmp_path / "train" / "questions.json").write_text(json.dumps(told))
    assert looks(tmp_path, "train") == {0: ("red", "rectangle"), 1: ("blue", "circle")}
