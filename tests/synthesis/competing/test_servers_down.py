"""A competition whose server is away for a while, moves, drops pictures, or has spent its budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmkd.config.compete_schema import CompeteConfig
from mmkd.data.rejected import RejectedLog
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import good_enough
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.folder import require_same
from mmkd.synthesis.competing.items import Item, read_items, write_items
from mmkd.synthesis.limits import BudgetSpent
from mmkd.synthesis.requests import Sampling
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy


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
