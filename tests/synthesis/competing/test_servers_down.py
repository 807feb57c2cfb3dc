"""A competition whose server is away for a while, moves, drops pictures, or has spent its budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.competing import compete
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import Kind, Outcome, assess, good_enough
from mmkd.synthesis.competing.augmenting import grow
from mmkd.synthesis.competing.augmentors import Draft, Wanted
from mmkd.synthesis.competing.augmentors.registry import AUGMENTORS
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.folder import require_same
from mmkd.synthesis.competing.items import Item, read_items, write_items
from mmkd.synthesis.limits import BudgetSpent
from mmkd.synthesis.requests import Sampling, Status
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy

HELD = {"teacher": 9.0, "student": 1.0, "win_rate": 0.0, "unscored": 0, "compared": 0, "disagreed": 0}


@pytest.fixture
def items(picture, tmp_path) -> list[Item]:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(0))
    return [Item(f"i{number}", f"what is thing number {number}?", (str(file),)) for number in range(60)]


def config(out: Path, teacher: dict[str, Any], **changes: Any) -> CompeteConfig:
    base = {
        "out": str(out),
        "start": "s",
        "training": {"config": "t"},
        "teacher": teacher,
        "pool": [{"source": "scenes"}],
        "held_out": [{"source": "scenes"}],
        "augment": {"name": "grounded"},
        "check_teacher": False,
        "labels": "judge" not in changes,
    }
    return CompeteConfig.model_validate(base | changes)


def served(url: str, **fields: Any) -> dict[str, Any]:
    settings = {"url": url, "model": "m", "retry_seconds": 0, "check_images": False, "concurrency": 1}
    return {"endpoint": settings | fields}


def test_a_step_is_closed_only_when_the_server_owes_nothing(items, tmp_path):
    with FaultProxy(None, fault=lambda number, body: "500" if 7 <= number < 12 else "") as proxy:
        competition = Competition(config(tmp_path, served(proxy.url)), {}, tmp_path, lambda *_: None)
        write_items(tmp_path / "given" / "pool.jsonl", items)
        with pytest.raises(DataError, match=r"5 of 60 requests to m got no reply.*run again"):
            competition._step("teacher", competition._ask_teacher)
        assert competition._step("teacher", competition._ask_teacher) == {"pool": 60, "given": 60}
        assert len(proxy.seen) == 65
    assert [item.id for item in read_items(tmp_path / "pool" / "0.jsonl")] == [item.id for item in items]


def test_a_budget_is_that_of_all_roles_together(items, tmp_path):
    def said(body: dict[str, Any]) -> str:
        return '{"reason": "r", "score": 9}' if "grade answers" in str(body) else "red"

    with FaultProxy(None, content=said) as proxy:
        model = served(proxy.url, budget={"tokens": 2800}, structured="validate", image_tokens=10)
        one = config(tmp_path, model, judge={"model": model, "max_tokens": 50})
        log, asked = RejectedLog(tmp_path / "log.jsonl"), tmp_path / "asked"
        told = answered(one.teacher, asked, items, Sampling(max_tokens=20), log, 0, "teacher")
        with pytest.raises(BudgetSpent, match="of 2,800 tokens are spent"):
            good_enough(one, tmp_path, told, log)
        spent = {}
        for role in ("teacher", "judge"):
            with Store(asked / role) as store:
                spent[role] = store.spent("m").tokens
    assert spent["teacher"] == 60 * 15
    assert 0 < spent["judge"] < sum(spent.values()) <= 2800


def test_an_augmentor_may_have_several_models_open_on_one_budget(items, tmp_path, monkeypatch):
    spent = []

    def both(wanted: Wanted, model: ModelSection) -> Iterator[Draft]:
        requests = [parent.item.request(Sampling(max_tokens=20)) for parent in wanted.parents]
        with wanted.open(model, "one") as one, wanted.open(model, "other") as other:
            for asker in (one, other):
                spent.append([answer.text for answer in asker.answer(requests)])
                assert asker.backend._budget.paid.spent.tokens == 15 * (60 + 3 * len(spent))
        yield from (Draft(parent, problem="none", kind="none") for parent in wanted.parents)

    monkeypatch.setitem(AUGMENTORS, "both", both)
    with FaultProxy(None) as proxy:
        model, log = served(proxy.url), RejectedLog(tmp_path / "log.jsonl")
        own = config(tmp_path, model, augment={"name": "both", "count": 3, "hard_share": [1.0], "model": model})
        pool = answered(own.teacher, tmp_path / "asked", items, Sampling(), log, 0, "teacher")
        outcomes = [Outcome(item.id, Kind.HARD, "x", "y", (9.0, 1.0)) for item in items]
        assert grow(own, tmp_path, 1, pool, outcomes, own.teacher, log).drafted == 3
    assert spent == [["x"] * 3] * 2


def test_a_server_may_move_and_its_budget_be_raised_and_its_model_not(tmp_path):
    augment = {"name": "llm", "model": served("http://one/v1")}
    require_same(tmp_path, config(tmp_path, served("http://one/v1"), augment=augment), {})
    elsewhere = served("http://two/v1", budget={"tokens": 9}, concurrency=3, retry_seconds=7, replicas=["http://3/v1"])
    require_same(tmp_path, config(tmp_path, elsewhere, augment=augment | {"model": elsewhere}), {})
    for changes, where in (
        ({"teacher": served("http://one/v1", model="other")}, "teacher.endpoint.model"),
        ({"augment": {"name": "llm", "model": served("http://one/v1", model="n")}}, "augment.model.endpoint.model"),
        ({"gap": 2.0}, "gap"),
    ):
        settings = {"teacher": served("http://one/v1"), "augment": augment} | changes
        with pytest.raises(ConfigError, match=rf"other settings: competition\.{where}\. .*how an endpoint is reached"):
            require_same(tmp_path, config(tmp_path, **settings), {})


class Brief(FaultProxy):
    """Of what it says of every second thing 20 tokens are not enough, and of every 20th not 30."""

    async def _upstream(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = await super()._upstream(body)
        number = int(re.findall(r"thing number (\d+)", str(body))[0])
        if number % 2 == 0 and body["max_tokens"] <= (30 if number % 20 == 0 else 20):
            answer["choices"][0]["finish_reason"] = "length"
        return status, answer


@pytest.mark.parametrize("role", ["judge", "sampling"])
def test_more_tokens_are_asked_for_what_was_cut_off_and_for_nothing_else(role, items, tmp_path):
    def said(body: dict[str, Any]) -> str:
        return '{"reason": "r", "score": 9}' if "grade answers" in str(body) else "red"

    with Brief(None, content=said) as proxy:
        model = served(proxy.url, structured="validate")
        write_items(tmp_path / "given" / "pool.jsonl", items)

        def ask(judge: int, answer: int, **more: Any) -> tuple[dict[str, int], int]:
            fields = {"judge": {"model": model, "max_tokens": judge}, "sampling": {"max_tokens": answer}}
            one = config(tmp_path, model, **fields, check_teacher=True, **more)
            require_same(tmp_path, one, {})
            before, competition = len(proxy.seen), Competition(one, {}, tmp_path, lambda *_: None)
            if 20 not in (judge, answer):
                return competition._ask_teacher(), len(proxy.seen) - before
            message = r"ran into max_tokens 20;.* once judge\.max_tokens or sampling\.max_tokens is raised"
            with pytest.raises(DataError, match=message):
                competition._ask_teacher()
            return {}, len(proxy.seen) - before

        if role == "judge":
            assert ask(20, 99) == ({}, 120)
            assert ask(20, 99) == ({}, 0)
            assert ask(30, 99) == ({"pool": 57, "given": 60}, 30)
            assert ask(40, 99, reasks=5) == ({"pool": 60, "given": 60}, 3)
        else:
            assert ask(99, 20) == ({}, 60)
            assert ask(99, 30) == ({"pool": 57, "given": 60}, 30 + 57)
            assert ask(99, 30, may_be_cut=True) == ({"pool": 60, "given": 60}, 3 + 3)
        with Store(tmp_path / "asked" / "judge") as store:  # nothing is kept twice
            done = [entry.request["id"] for entry in store.entries() if entry.status is Status.DONE]
        assert len(done) == len(set(done)) == 60


def test_a_held_out_split_of_few_items_has_verdicts_or_no_score(items, tmp_path, tiny_student):
    """The judge's reply to two items of ten cannot be read, then to one; its score is of nine."""
    unread = {0, 1}

    def said(body: dict[str, Any]) -> str:
        if "grade answers" not in str(body):
            return "red"
        number = int(re.findall(r"thing number (\d+)", str(body))[0])
        return "both are fine" if number in unread else '{"reason": "r", "first": 9, "second": 9}'

    with FaultProxy(None, content=said) as proxy:

        def held_out(tokens: int) -> dict[str, Any]:
            model = served(proxy.url, structured="validate")
            fields = {"judge": {"model": model, "max_tokens": tokens}, "student": {"tokens": 4}}
            one = config(tmp_path, model, **fields, sampling={"max_tokens": 2})
            require_same(tmp_path, one, {})
            return Competition(one, {}, tmp_path, lambda *_: None)._held_out(0, str(tiny_student))

        write_items(tmp_path / "given" / "held_out.jsonl", items[:10])
        message = r"2 of 10 held-out items have no verdict, more than 10%.*rejected, in held-out-0\.jsonl.*goes on here"
        with pytest.raises(DataError, match=message):
            held_out(20)
        unread.remove(0)
        before = len(proxy.seen)
        found = held_out(30)
        assert 0 < len(proxy.seen) - before <= 2 * 2 * 3  # two items, both orders, asked again twice
    assert (found["scored"], found["unscored"], found["win_rate"]) == (9, 1, 0.5)


def test_a_folder_that_was_moved_goes_on_with_the_models_that_lie_in_it(tmp_path, monkeypatch):
    old, new, url = tmp_path / "old", tmp_path / "new", "http://one/v1"
    old.mkdir()
    require_same(old, config(old, served(url)), {})
    before = Competition(config(old, served(url)), {}, old, lambda *_: None)
    for name, result in {"prepare": {}, "pretraining": "s", "teacher": {}, "held-out-0": HELD,
                         "train-1": {"model": str(old / "round-1/student/model"), "rows": 9}}.items():  # fmt: skip
        before._step(name, lambda result=result: result)
    write_items(old / "pool" / "0.jsonl", [])
    old.rename(new)
    require_same(new, config(new, served(url)), {})
    after, asked = Competition(config(new, served(url), rounds=1), {}, new, lambda *_: None), []
    monkeypatch.setattr(after, "_assess", lambda number, student: asked.append(student))
    monkeypatch.setattr(after, "_held_out", lambda number, student: asked.append(student) or HELD)
    monkeypatch.setattr(compete, "card", lambda *_: "")
    after.run()
    assert asked == [str(new / "round-1/student/model")] * 2


def test_a_student_that_only_thought_has_said_nothing_and_a_teacher_has_no_answer(items, tmp_path):
    log = RejectedLog(tmp_path / "log.jsonl")
    with FaultProxy(None, fault=lambda number, body: "all thought") as proxy:
        model = ModelSection.model_validate(served(proxy.url))
        said = answered(model, tmp_path, items[:3], Sampling(), log, 2, "student", True, True)
        assert [item.answer for item in said] == [""] * 3
        assert list(answered(model, tmp_path, items[:3], Sampling(), log, 2, "teacher", True)) == []
        assert len(proxy.seen) == 6


class Grading(FaultProxy):
    """Its digit and a 0 are equally likely."""

    async def _upstream(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = await super()._upstream(body)
        choice = answer["choices"][0]
        likely = [
            {"token": digit, "logprob": math.log(0.5), "bytes": None} for digit in (choice["message"]["content"], "0")
        ]
        choice["logprobs"] = {"content": [likely[0] | {"top_logprobs": likely}]}
        return status, answer


def test_a_judge_of_digits_scores_each_answer_alone_and_is_not_shown_the_label(items, tmp_path):
    told = [replace(item, answer="red", reference="crimson") for item in items[:4]]
    with Grading(None, content=lambda body: "9" if "red" in str(body["messages"][-1]) else "2") as proxy:
        one = config(tmp_path, served(proxy.url), judge={"model": served(proxy.url), "form": "digit"})
        said = dict.fromkeys([item.id for item in told], "blue")
        outcomes, bias = assess(one, tmp_path, told, said, RejectedLog(tmp_path / "log.jsonl"))
        assert len(proxy.seen) == 2 * 4
        assert not any("crimson" in str(seen.body) for seen in proxy.seen)
    assert [outcome.scores for outcome in outcomes] == [(1 + 4.5, 1 + 1.0)] * 4  # the means of 9 or 2, and 0
    assert {outcome.kind for outcome in outcomes} == {Kind.WEAK}
    assert bias.compared == 0


class Seeing(FaultProxy):
    """Counts twenty tokens for each picture."""

    async def _upstream(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = await super()._upstream(body)
        answer["usage"]["prompt_tokens"] += 20 * str(body).count("'image_url':")
        return status, answer


def test_a_judge_that_is_sent_pictures_and_does_not_read_them_is_found_out(items, tmp_path):
    told = [replace(item, answer="red") for item in items[:4]]
    log = RejectedLog(tmp_path / "log.jsonl")
    for server, reads in ((FaultProxy, False), (Seeing, True)):
        with server(None, content=lambda body: '{"reason": "r", "score": 9}') as proxy:
            model = served(proxy.url, structured="validate", check_images=True)
            one, out = config(tmp_path, model, judge={"model": model}), tmp_path / server.__name__
            if not reads:
                with pytest.raises(ConfigError, match=r"1 image\(s\) in a prompt add 0 tokens"):
                    good_enough(one, out, told, log)
                assert len(proxy.seen) == 2
                continue
            assert list(good_enough(one, out, told[:2], log)) == told[:2]
            assert list(good_enough(one, out, told, log)) == told
            assert len(proxy.seen) == 5  # one of them without the picture
