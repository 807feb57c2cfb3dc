"""Who answers without the image; and what is done where no answer comes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mmkd.config.compete_schema import BlindFilterSection, CompeteConfig
from mmkd.config.synthesis_schema import SelectConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import RejectedLog, summary
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.blind import Blind
from mmkd.synthesis.competing.augmenting import Gone, needing_pictures
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.evolving.items import OPEN, Content
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection
from mmkd.synthesis.evolving.rounds import Round
from mmkd.synthesis.selecting import select_records
from tests.synthesis.fault_proxy import FaultProxy

LONG = "The thing is red, as seen in the middle."


@pytest.fixture
def kept(tmp_path):
    """`kept(proxy, answer, **section)`: (ids that stay, what went by kind) of six items with that teacher answer."""

    def run(proxy: FaultProxy, answer: str, **section) -> tuple[list[str], dict[str, int]]:
        model = {"endpoint": {"url": proxy.url, "model": "m", "retry_seconds": 0}}
        config = CompeteConfig.model_validate(
            {"out": str(tmp_path), "start": "s", "training": {"config": "t"}, "teacher": model, "reasks": 0,
             "pool": [{"source": "scenes"}], "held_out": [{"source": "scenes"}], "augment": {"name": "grounded"},
             "filters": {"blind": {"model": model} | section}}
        )  # fmt: skip
        items = [Item(f"r1.{n}", f"what colour is thing {n}?", (), answer=answer) for n in range(6)]
        gone = Gone(RejectedLog(tmp_path / "log.jsonl"))
        assert isinstance(config.filters.blind, BlindFilterSection)
        left = needing_pictures(config, config.filters.blind, tmp_path, items, gone)
        return [item.id for item in left], dict(gone.counts)

    return run


def test_a_long_answer_in_nearly_the_same_words_needs_no_picture(kept):
    with FaultProxy(None, content=lambda body: "The thing is red, as seen in the center.") as proxy:
        assert kept(proxy, LONG) == ([], {"needs no picture": 6})
        assert len(proxy.seen) == 18
        assert {seen.body["max_tokens"] for seen in proxy.seen} == {512}


def test_one_lucky_guess_of_three_drops_nothing_and_one_try_may(kept):
    told = Counter()

    def guess(body) -> str:
        question = str(body["messages"])
        told[question] += 1
        return "yes" if told[question] % 2 else "no"

    with FaultProxy(None, content=guess) as proxy:
        assert len(kept(proxy, "yes")[0]) == 6
        assert len(proxy.seen) == 12  # after the wrong one a question is not tried again
    with FaultProxy(None, content=lambda body: "yes") as proxy:
        assert kept(proxy, "yes", tries=1, temperature=0, max_tokens=4) == ([], {"needs no picture": 6})
        assert {seen.body["max_tokens"] for seen in proxy.seen} == {4}


def test_where_no_reply_comes_nothing_is_known_and_an_empty_one_is_wrong(kept, tmp_path):
    def fault(number, body) -> str:
        return "400" if any(f"thing {n}?" in str(body["messages"]) for n in (0, 1)) else ""

    with FaultProxy(None, fault=fault, content=lambda body: "blue") as proxy:
        assert kept(proxy, LONG) == (["r1.2", "r1.3", "r1.4", "r1.5"], {"blind test unknown": 2})
    assert summary(tmp_path / "log.jsonl") == {"blind test unknown": 2}
    assert "a reply without the image is missing: " in (tmp_path / "log.jsonl").read_text()
    with FaultProxy(None, content=lambda body: " ") as proxy:
        assert len(kept(proxy, LONG, temperature=0.5)[0]) == 6


def test_a_model_that_only_thought_has_not_said_anything_wrong(kept, tmp_path):
    with FaultProxy(None, fault=lambda number, body: "all thought") as proxy:
        assert kept(proxy, LONG) == ([], {"blind test unknown": 6})
        assert len(proxy.seen) == 18
        write_jsonl(tmp_path / "rows.jsonl", [Record("r", [Turn("user", "what?"), Turn("assistant", "red")])])
        selector = {"name": "image_need", "model": {"endpoint": {"url": proxy.url, "model": "m"}}}
        data = [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}]
        config = SelectConfig.model_validate({"data": data, "select": [selector], "out": str(tmp_path / "out")})
        assert not list(jsonl(str(select_records(config))))
        assert len(proxy.seen) == 19  # at temperature 0 it would think the same again
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["kind"] == "blind test unknown"


def test_a_selection_sets_aside_what_nobody_knows(tmp_path):
    rows = [Record(f"r{n}", [Turn("user", f"what is {n}?"), Turn("assistant", "red")]) for n in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", rows)

    def fault(number, body) -> str:
        return "400" if "what is 2?" in str(body["messages"]) else ""

    with FaultProxy(None, fault=fault, content=lambda body: "blue") as proxy:
        selector = {"name": "image_need", "model": {"endpoint": {"url": proxy.url, "model": "m"}}}
        data = [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}]
        config = SelectConfig.model_validate({"data": data, "select": [selector], "out": str(tmp_path / "out")})
        left = jsonl(str(select_records(config)))
    assert [record.id for record in left] == ["r0", "r1", "r3"]
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "blind test unknown"


def test_an_evolved_version_of_which_it_is_not_known_is_rejected():
    class Silent:
        def answered(self, contents) -> dict[str, Blind]:
            return {name: Blind(name == "a", "why") for name, _ in contents}

    content = Content(objects=[], skills=[], steps=[], form=OPEN, question="what?", answer="red")
    now: dict[str, Proposal | Rejection] = {name: Proposal(content) for name in "ab"}
    Round(None, None, None, Silent(), 1.0)._not_blind(now)  # type: ignore[arg-type]
    kinds = [one.kind for one in now.values() if isinstance(one, Rejection)]
    assert kinds == ["blind test unknown", "answered without the image"]
