"""`mmkd answer`: records relabelled by a served teacher, by a model in this process, and by one that is blind."""

from __future__ import annotations

import json

import pytest

from mmkd.config.load import load_as
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.config.synthesis_schema import AnswerConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError
from mmkd.synthesis.answering import answer_records, both
from mmkd.synthesis.limits import BudgetSpent
from mmkd.synthesis.programs.making.run import make_programs
from tests.synthesis.fault_proxy import FaultProxy


@pytest.fixture
def records(tmp_path, picture):
    rows = []
    for number in range(12):
        turns = [Turn("user", f"What {number}?"), Turn("assistant", "old")]
        if number % 3 == 0:
            turns += [Turn("user", "And then?"), Turn("assistant", "older")]
        rows.append(Record(f"r{number}", turns, [picture(number)], "t", "s", Provenance(license="MIT")))
    rows[5].images = [b"no picture"]
    write_jsonl(tmp_path / "records.jsonl", rows)
    return tmp_path / "records.jsonl"


def config(tmp_path, records, model: dict, **fields) -> AnswerConfig:
    path = tmp_path / "answer.yaml"
    data = [{"source": "jsonl", "path": str(records)}]
    text = {"model": model, "data": data, "out": str(tmp_path / "out"), "sampling": {"max_tokens": 6}}
    path.write_text(json.dumps(text | {"may_be_cut": True} | fields))
    return load_as(path, [], AnswerConfig)


def last(body) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def test_a_served_teacher_answers_in_the_place_of_the_record(served, endpoint, records, tmp_path):
    with FaultProxy(served, content=lambda body: f"said to {last(body)!r}") as proxy:
        asked = config(tmp_path, records, {"endpoint": endpoint(proxy.url, license="Apache-2.0").model_dump()})
        outcome = answer_records(asked)
        bodies = [seen.body for seen in proxy.seen]
        first = (tmp_path / "out" / "records.jsonl").read_bytes()
        answer_records(asked)
        assert len(proxy.seen) == len(bodies)  # nothing is asked twice
        assert (tmp_path / "out" / "records.jsonl").read_bytes() == first
    assert (outcome.whole, outcome.shortened, outcome.bad) == (11, 0, 1)
    written = jsonl(str(outcome.file))
    assert [record.id for record in written] == [f"r{number}" for number in range(12) if number != 5]
    two = written[3]
    assert [turn.text for turn in two.turns] == ["What 3?", "said to 'What 3?'", "And then?", "said to 'And then?'"]
    card = (tmp_path / "out" / "card.md").read_text()
    assert "11 chat records with" in card
    assert "MIT AND Apache-2.0 (11)" in card
    assert "tiny (11)" in card
    source = two.provenance
    assert (source.parent, source.engine, source.model, source.license) == (
        "r3",
        "answer",
        "tiny",
        "MIT AND Apache-2.0",
    )
    assert source.prompt_hash
    # Pictures with each question but the one blind probe, which stands after what the teacher itself said.
    assert sum("image_url" not in str(body) for body in bodies) == 1
    deeper = next(body for body in bodies if len(body["messages"]) == 3)
    assert deeper["messages"][1]["content"].startswith("said to")


def test_a_server_that_drops_pictures_is_found_out_before_the_run(endpoint, records, tmp_path):
    with FaultProxy(None) as proxy:  # ten prompt tokens, whatever is sent
        asked = config(tmp_path, records, {"endpoint": endpoint(proxy.url).model_dump()})
        with pytest.raises(ConfigError, match=r"1 image\(s\) in a prompt add 0 tokens to it, so 'tiny' does not read"):
            answer_records(asked)
        assert len(proxy.seen) == 2
        unchecked = endpoint(proxy.url, check_images=False).model_dump()
        assert answer_records(config(tmp_path, records, {"endpoint": unchecked})).whole == 11


def test_what_has_no_answer_is_shortened_or_set_aside_with_the_reason(served, endpoint, records, tmp_path):
    def content(body) -> str:
        return "" if "What 2?" in last(body) or "And then" in last(body) else "fine"

    with FaultProxy(served, content=content) as proxy:
        asked = config(tmp_path, records, {"endpoint": endpoint(proxy.url).model_dump()}, reasks=0)
        outcome = answer_records(asked)
    assert (outcome.whole, outcome.shortened, outcome.bad) == (6, 4, 2)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {(line["id"], line["kind"]) for line in rejected} == {
        ("r5", "image unreadable"), *((f"r{number}", "empty reply") for number in (0, 2, 3, 6, 9)),
    }  # fmt: skip


def test_a_spent_budget_stops_and_the_same_command_goes_on(endpoint, records, tmp_path):
    with FaultProxy(None) as proxy:
        settings = {"check_images": False, "image_tokens": 10, "concurrency": 2}
        few = endpoint(proxy.url, budget={"tokens": 150}, **settings).model_dump()
        with pytest.raises(BudgetSpent, match="of 150 tokens are spent"):
            answer_records(config(tmp_path, records, {"endpoint": few}))
        sent = len(proxy.seen)
        assert 0 < sent <= 10
        assert not (tmp_path / "out" / "records.jsonl").exists()
        enough = endpoint(proxy.url, budget={"tokens": 15000}, **settings).model_dump()
        assert answer_records(config(tmp_path, records, {"endpoint": enough})).whole == 11
        assert len(proxy.seen) == 15  # 11 first and 4 second questions


def test_a_release_answers_in_this_process_as_it_does_when_served(served, endpoint, records, model_path, tmp_path):
    local = answer_records(
        config(tmp_path, records, {"vlm": {"model": model_path, "tokens": 4}}, out=str(tmp_path / "a"))
    )
    remote = answer_records(
        config(tmp_path, records, {"endpoint": endpoint(served).model_dump()}, out=str(tmp_path / "b"))
    )
    said = [[record.turns[1].text for record in jsonl(str(outcome.file))] for outcome in (local, remote)]
    assert len(said[0]) > 5
    assert said[0] == said[1]


def test_a_config_error_names_the_key(tmp_path, records):
    with pytest.raises(ConfigError, match=r"model\.endpoint\.ur1 is not a field.*Did you mean url"):
        config(tmp_path, records, {"endpoint": {"ur1": "x", "model": "m"}})
    with pytest.raises(ConfigError, match=r"config: model needs exactly one of endpoint, language, vlm\."):
        config(tmp_path, records, {})


def test_a_key_that_is_missing_is_told_before_a_row_is_read(tmp_path):
    keyless = {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "NOT_SET_HERE"}}
    with pytest.raises(ConfigError, match=r"config: model\.endpoint\.api_key_env names NOT_SET_HERE"):
        answer_records(config(tmp_path, tmp_path / "no such rows", keyless))
    data = [{"source": "jsonl", "path": "no such rows"}]
    settings = {"writer": {"language": {"source": "gguf:x"}}, "rationales": keyless, "data": data, "out": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"config: rationales\.endpoint\.api_key_env names NOT_SET_HERE"):
        make_programs(ProgramsConfig.model_validate(settings))


def test_licences_are_joined_as_spdx_has_it():
    assert both("MIT", "Apache-2.0") == "MIT AND Apache-2.0"
    assert (both("MIT", "MIT"), both(None, "MIT"), both(None, None)) == ("MIT", "MIT", None)
