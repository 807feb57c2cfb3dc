"""The bench of visual programs, on sizes that take seconds."""

from __future__ import annotations

import json

import pytest

from bench.programs import main
from bench.rows import read
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.scenes import scene, scenes
from mmkd.data.write_records import write_jsonl
from mmkd.errors import AssetError, DataError
from mmkd.synthesis.programs.backends.classical import classical

QUESTION = "how many circles are there?"
RIGHT = "def answer(image):\n    return count(image, 'circle')\n"
# Right on every scene whose circles are all of one colour that nothing else has: verified there, and luck.
LUCKY = "def answer(image):\n    return len([one for one in find(image, 'circle') if exists(image, 'red circle')])\n"


@pytest.fixture(scope="module", autouse=True)
def easyvqa():
    try:
        scene("train", 0, 0)
    except AssetError as error:
        pytest.skip(f"EasyVQA cannot be brought here: {error}")


@pytest.fixture
def finished(tmp_path):
    """`finished(*programs)`: a run that verified these, and told the first one's trace on three scenes."""

    def make(*programs: str, of: str = "scenes/train/0/3/{n}/0"):
        rows, records = [], []
        for number in range(3):
            id, one = f"{of.format(n=number)}#0", scene("train", number, 0)
            for program in programs:
                row = {"id": id, "task": "count", "question": QUESTION, "program": program, "verdict": "verified"}
                rows.append(json.dumps(row) + "\n")
            turns = [Turn("user", QUESTION), Turn("assistant", "1", "I looked.")]
            records.append(Record(id, turns, [one.png()], "count", "scenes", Provenance(program=programs[0])))
        (tmp_path / "programs.jsonl").write_text("".join(rows))
        write_jsonl(tmp_path / "records.jsonl", records)
        return tmp_path

    return make


def values(job: str, folder) -> dict[str, float]:
    return {row.metric: row.value for row in read(f"programs_{job}", folder)}


def test_a_lucky_program_is_wrong_on_new_scenes_and_a_right_one_is_not(finished, tmp_path):
    run = finished(LUCKY, RIGHT)
    main(["false_accepts", str(run), "--scenes", "12"], tmp_path / "rows")
    found = values("false_accepts", tmp_path / "rows")
    assert found["tried@count"] == found["tried@all"] == 2
    assert found["false_accepts@all"] == 50
    assert found["false_records@all"] == 100  # it is the lucky one whose trace was told
    main(["false_accepts", str(run), "--scenes", "12", "--share", "1"], tmp_path / "lenient")
    assert values("false_accepts", tmp_path / "lenient")["false_accepts@all"] == 0


def test_new_scenes_are_of_another_seed_and_a_run_on_anything_else_is_refused(finished, tmp_path):
    with pytest.raises(DataError, match="give another, so that they are new"):
        main(["false_accepts", str(finished(RIGHT)), "--seed", "0"], tmp_path / "rows")
    with pytest.raises(DataError, match="no scene of mmkd"):
        main(["false_accepts", str(finished(RIGHT, of="photo/{n}"))], tmp_path / "rows")
    with pytest.raises(DataError, match="give the folder of a finished run"):
        main(["false_accepts", str(tmp_path / "nothing")], tmp_path / "rows")


def test_throughput_has_the_sandbox_alone_and_with_its_tools(tmp_path):
    main(["throughput", "--programs", "30", "--rounds", "2"], tmp_path)
    found = {row.case: row for row in read("programs_throughput", tmp_path)}
    assert set(found) == {"tools that answer at once", "classical, one picture", "classical, 5 programs a picture"}
    assert all(row.value > 0 and row.spread is not None for row in found.values())


def test_memory_is_read_after_each_batch(tmp_path):
    main(["memory", "--programs", "100"], tmp_path)
    found = values("memory", tmp_path)
    held = [found[f"held@{number * 10} programs"] for number in range(1, 11)]
    assert found["grown"] == held[-1] - held[0]
    assert min(held) > 10


def test_a_students_answer_is_timed_beside_its_program(finished, tmp_path, tiny_student):
    main(["forward", tiny_student, str(finished(RIGHT)), "--questions", "2"], tmp_path / "rows")
    found = {row.metric: row for row in read("programs_forward", tmp_path / "rows")}
    assert set(found) == {
        "answer_time@student",
        "answer_time@program, classical",
        "student_times_faster@program, classical",
    }
    assert all(row.value > 0 for row in found.values())


def test_a_detectors_time_is_taken_and_the_others_answer_given():
    from bench.detector_cost import costing

    looked = []

    class Slow:
        def detect(self, image, name):
            looked.append(name)
            return []

    backends = costing(classical(), Slow())
    [picture] = [one.image() for one in scenes("train", 1, 0)]
    assert backends.detect.detect(picture, "thing") == classical().detect.detect(picture, "thing") != []
    assert looked == ["thing"]
