"""What a competition says of its cost, on the terminal and in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import good_enough
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.costs import costs
from mmkd.synthesis.competing.items import Item, write_items, write_rows
from mmkd.synthesis.requests import Sampling, Usage
from tests.synthesis.fault_proxy import FaultProxy

STANDING = {"teacher": 9.0, "student": 1.0, "win_rate": 0.0, "unscored": 0, "compared": 0, "disagreed": 0}


@pytest.fixture
def competition(tmp_path, picture):
    """A competition of one round, all of whose steps are done; of three answers one was empty, and empty again."""

    def said(body: dict[str, Any]) -> str:
        if "grade answers" in str(body):
            return '{"reason": "r", "score": 9}'
        return "" if "thing number 2" in str(body) else "red"

    (tmp_path / "picture.png").write_bytes(picture(0))
    items = [Item(f"i{n}", f"what is thing number {n}?", (str(tmp_path / "picture.png"),)) for n in range(3)]
    with FaultProxy(None, content=said) as proxy:
        served = {"url": proxy.url, "model": "m", "check_images": False, "structured": "validate"}
        teacher, judge = ({"endpoint": served | {"price": {"prompt": one, "answer": 1000}}} for one in (100, 2000))
        config = CompeteConfig.model_validate(
            {"out": str(tmp_path), "start": "s", "training": {"config": "t"}, "teacher": teacher,
             "judge": {"model": judge}, "labels": False, "pool": [{"source": "scenes"}], "rounds": 1,
             "held_out": [{"source": "scenes"}], "augment": {"name": "grounded"}}
        )  # fmt: skip
        ask(config, items)
        yield Competition(config, {}, tmp_path, lambda *_: None), lambda: ask(config, items)


def ask(config: CompeteConfig, items: list[Item]) -> None:
    out, log = Path(config.out), RejectedLog(Path(config.out) / "log.jsonl")
    model = ModelSection.model_validate(config.teacher.model_dump())
    told = answered(model, out / "asked", items, Sampling(max_tokens=20), log, 1, "teacher")
    assert len(good_enough(config, out, told, log)) == 2


def test_what_each_role_was_paid_is_counted_with_replies_that_were_no_answer_and_once(competition, tmp_path):
    _, again = competition
    first = costs(tmp_path / "asked")
    assert [(one.role, one.done, one.rejected) for one in first] == [("judge", 2, 0), ("teacher", 2, 1)]
    judge, teacher = (one.usage for one in first)
    assert (teacher.prompt_tokens, teacher.answer_tokens) == (4 * 10, 4 * 5)  # the empty one was asked for twice
    assert teacher.cost == pytest.approx((40 * 100 + 20 * 1000) / 1e6)
    assert judge == Usage(20, 10, pytest.approx((20 * 2000 + 10 * 1000) / 1e6))
    again()
    assert costs(tmp_path / "asked") == first


def test_a_competition_ends_with_a_line_of_cost_for_each_role_and_has_it_in_its_card(competition, tmp_path, capsys):
    running, _ = competition
    results = {"prepare": {}, "pretraining": "s", "teacher": {}, "held-out-0": STANDING,
               "train-1": {"model": "m", "rows": 9}, "assess-1": STANDING | {"hard_share": 1.0},
               "held-out-1": STANDING}  # fmt: skip
    for name, result in results.items():
        running._step(name, lambda result=result: result)
    write_items(tmp_path / "pool" / "0.jsonl", [Item("a", "what?", ("p.png",))])
    write_rows(tmp_path / "round-1" / "preferences.jsonl", [])
    capsys.readouterr()
    running.run()
    told = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["judge", "2", "(100.0%)", "0", "20", "10", "0.0500"] in told
    assert ["teacher", "2", "(66.7%)", "1", "40", "20", "0.0240"] in told
    card = (tmp_path / "card.md").read_text()
    assert "| role | done | rejected | prompt tokens | answer tokens | cost |\n|---|" in card
    assert "| teacher | 2 (66.7%) | 1 | 40 | 20 | 0.0240 |\n" in card
