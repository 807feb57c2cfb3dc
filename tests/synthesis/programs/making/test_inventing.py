"""Questions of the writer's own: kept with the answer on which its programs agree, as records like all others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from mmkd.data.record_files import jsonl
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.programs.making.inventing import question_in
from mmkd.synthesis.programs.making.run import make_programs
from tests.synthesis.programs.making.scripted import ScriptedWriter

CIRCLES, RED, TEAL, BLUE = (
    f"how many {what} are in sight?" for what in ("circles", "red ones", "teal ones", "blue ones")
)
PROPOSALS = [
    CIRCLES,
    f"Question 7: {RED}\nIt is new.",
    "I cannot.",
    CIRCLES.upper(),
    TEAL,
    BLUE,
    "how many triangles are there?",
]


def returns(*lines: str) -> str:
    return "\n    ".join(["def answer(image):", *lines])


def counted(name: str) -> list[str]:
    return [returns(f"return count(image, {name!r})"), returns(f"return len(find(image, {name!r}))")]


PROGRAMS = {
    CIRCLES: [*counted("circle"), returns("return count(image, 'triangle')")],
    RED: [*counted("red"), returns("return 'red' + 1")],
    TEAL: [*counted("teal")[:1], counted("teal")[0].replace("image", "picture"), returns("return 1")],  # one, in truth
    BLUE: [*counted("blue")[:1], *counted("circle")[:1], returns("return count(image, 'shape')")],
}


def rule(question: str, seed: int) -> str:
    return PROPOSALS[seed] if question.startswith("Write question") else PROGRAMS[question][seed]


@pytest.fixture
def inventor() -> Iterator[ScriptedWriter]:
    with ScriptedWriter(rule) as server:
        yield server


@pytest.fixture
def job(config, inventor, tmp_path):
    endpoint = {"endpoint": {"url": inventor.url, "model": "inventor", "license": "MIT", "concurrency": 2}}
    return config(tmp_path / "out", writer=endpoint, samples=3, invent={"questions": 7, "images": 3})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_programs_agree_on_becomes_the_answer_of_a_new_question(job, rows, make_scene, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [row for row in rows if row.turns[0].text != "how many triangles are there?"])
    made = make_programs(job)
    records = jsonl(str(made.file))
    assert {record.turns[0].text for record in records} == {CIRCLES, RED}
    for record in records:
        place = int(record.provenance.parent.split("/")[4])
        things = make_scene("train", place, 0).things
        what = {CIRCLES: [one.shape == "circle" for one in things], RED: [one.color == "red" for one in things]}
        assert record.turns[1].text == str(sum(what[record.turns[0].text]))
        assert record.turns[1].rationale.endswith(f"So the answer is {record.turns[1].text}.")
        assert (record.task, record.provenance.engine, record.provenance.verdict) == (
            "invented",
            "programs",
            "verified",
        )
        assert (record.provenance.model, record.provenance.license) == ("inventor", "MIT")
        assert record.provenance.program.startswith("def answer(")
        assert record.provenance.trace[0]["grounded"]
    rejected = lines(tmp_path / "out" / "rejected.jsonl")
    kinds = {one["id"]: one["kind"] for one in rejected if one["source"] == "invented"}
    assert kinds == {"invent#2": "not a question", "invent#3": "not new", "invent#6": "not new"}
    programs = lines(tmp_path / "out" / "programs.jsonl")
    verdicts = {question: {one["reason"] for one in programs if one["question"] == question} for question in PROGRAMS}
    assert verdicts[TEAL] <= {"no second program agrees", "looked at nothing"}
    # Two programs that mean different things count none of either on one picture.
    assert verdicts[BLUE] == {"no second program agrees", "wrong on other pictures"}
    assert "no second program agrees" in verdicts[CIRCLES]  # the one that counts triangles


def test_an_answer_that_as_many_programs_dispute_is_none(runner, make_scene):
    from mmkd.synthesis.programs.reasons import Reason
    from mmkd.synthesis.programs.verifier import verify

    image = make_scene("train", 0, 0).image()
    one, other = counted("shape"), [returns(f"return count(image, 'shape') + {n}") for n in ("1", "2 - 1")]
    found = verify(runner, [*one, *other], image, "how many?", choices=None)
    assert {outcome.reason for outcome in found} == {Reason.DISPUTED}
    found = verify(runner, [*one, *other[:1]], image, "how many?", choices=None)
    assert [outcome.reason for outcome in found] == [None, None, Reason.ALONE]
    found = verify(runner, one, image, "how many?", choices=None, agree=3)
    assert {outcome.reason for outcome in found} == {Reason.ALONE}


def test_a_second_run_asks_nothing_and_gives_the_same_records(job, inventor, tmp_path):
    first = make_programs(job).file.read_bytes()
    asked = len(inventor.asked)
    assert asked == 7 + 3 * 4
    assert make_programs(job).file.read_bytes() == first
    assert len(inventor.asked) == asked


def test_inventing_does_not_go_with_tuning(config, tmp_path):
    writer = {"language": {"source": "gguf:smollm2-135m"}}
    with pytest.raises(ValidationError, match="tune and invent go one after the other"):
        config(tmp_path / "out", writer=writer, tune={}, invent={})


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("how many cups are there?", "how many cups are there?"),
        ('\n  "Is it  red or blue?"\nYes.', "Is it red or blue?"),
        ("3. what is left of the cup?", "what is left of the cup?"),
        ("- Question: what is it?", "what is it?"),
        ("There are two cups.", None),
        ("why?", None),
        ("x " * 200 + "?", None),
        ("", None),
    ],
)
def test_a_question_is_the_first_line_that_is_one(reply, question):
    assert question_in(reply) == question
