"""Which models a run opens, and where it keeps what they say."""

from __future__ import annotations

import json

import pytest

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.synthesis.evolving.card import card
from mmkd.synthesis.evolving.opening import Parts
from mmkd.synthesis.requests import Status, Usage
from mmkd.synthesis.store import Entry, Store

LENGTHS = {f"{name} per item": 0.0 for name in ("steps", "skills", "objects")}
SEEDS = {"round": 0, "items": 1, **LENGTHS, "in a model's words": 0, "forms": {}, "skills": {}, "answers": {}}
MADE = {"evolver": "a", "judge": "b", "tools": "classical", "without the image": "not tested"}
SUMMARY = {"rounds": [SEEDS], "made by": MADE, "records": 1, "questions": 1, "licenses": ["MIT"], "sources": ["scenes"]}


def config(tmp_path, **models: dict) -> EvolveConfig:
    return EvolveConfig.model_validate(
        {
            "data": [{"source": "scenes"}],
            "out": str(tmp_path),
            "evolver": {"kind": "llm", "model": models["evolver"]},
            "judge": {"kind": "model", "model": models["judge"]},
            "blind": {"model": models["blind"]},
            "tools": {"detector": "classical"},
        }
    )


def served(port: int, **fields) -> dict:
    return {"endpoint": {"url": f"http://127.0.0.1:{port}/v1", "model": "model"} | fields}


def test_servers_that_call_their_models_alike_are_asked_each_for_itself(tmp_path):
    models = {
        "evolver": served(8000, budget={"tokens": 1_000_000}),
        "judge": served(8001, license="MIT"),
        "blind": served(8002),
    }
    with Parts(config(tmp_path, **models), tmp_path) as parts:
        askers = {
            "evolver": parts.round.evolver.asker,
            "judge": parts.round.judge.asker,
            "blind": parts.round.blind.asker,
        }
        for role, asker in askers.items():
            assert asker.backend.section.url == models[role]["endpoint"]["url"]
            assert asker.store.folder == tmp_path / "answers" / role
        assert askers["evolver"].backend.section.budget.tokens == 1_000_000
        assert [asker.backend.license for asker in askers.values()] == [None, "MIT", None]


def test_roles_of_one_section_share_its_budget_and_its_answers(tmp_path):
    models = dict.fromkeys(("evolver", "judge", "blind"), served(8000, budget={"tokens": 500}))
    with Parts(config(tmp_path, **models), tmp_path) as parts:
        assert parts.round.evolver.asker is parts.round.judge.asker is parts.round.blind.asker
        assert parts.round.evolver.asker.store.folder == tmp_path / "answers" / "evolver"


def test_replies_stay_where_they_are_when_one_role_alone_moves_or_may_spend_more(tmp_path):
    models = dict.fromkeys(("evolver", "judge", "blind"), served(8000, budget={"tokens": 500}))
    (tmp_path / "settings.json").write_text(json.dumps(config(tmp_path, **models).model_dump(mode="json")))
    with Store(tmp_path / "answers" / "evolver") as store:
        store.append(Entry("k", Status.DONE, "model", {}, "said", usage=Usage(100, 20)))
    models["evolver"] = served(8000, budget={"tokens": 900})
    models["blind"] = served(8002, budget={"tokens": 500})
    with Parts(config(tmp_path, **models), tmp_path) as parts:
        askers = [one.asker for one in (parts.round.evolver, parts.round.judge, parts.round.blind)]
        assert [asker.backend.section.url[-7:-3] for asker in askers] == ["8000", "8000", "8002"]
        assert [asker.backend.section.budget.tokens for asker in askers] == [900, 500, 500]
        assert {asker.store for asker in askers} == {askers[0].store}
        [paid] = {asker.backend._budget.paid for asker in askers}
        assert paid.spent.tokens == 120
    with Store(tmp_path / "answers" / "evolver") as store:  # all have let it go
        assert store.final("k")


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("judge", [{}, {"judge": {"kind": "model", "model": served(8000)}}])
def test_the_card_says_who_checked_the_steps_that_are_told(tmp_path, chain, judge):
    fields = {"data": [{"source": "scenes"}], "out": str(tmp_path), "blind": None, "chain": chain, **judge}
    told = card(EvolveConfig.model_validate(fields), SUMMARY)
    assert ("What else the told steps say was checked by" in told) == chain
    assert ("checked by nobody." in told) == (chain and not judge)
    assert ("the judge alone, who was shown them." in told) == (chain and bool(judge))


def test_names_of_sources_and_licences_are_text_in_the_card(tmp_path):
    data = [{"source": "jsonl", "path": "rows.jsonl"}]
    empty = EvolveConfig.model_validate({"data": data, "out": str(tmp_path), "blind": None})
    told = card(empty, SUMMARY | {"licenses": ["MIT | <b>"], "sources": ["<script>", "two\nlines"]})
    assert "<script>" not in told
    assert "&lt;script>, two\\nlines in" in told
    assert "| licences | MIT \\| &lt;b> |" in told
