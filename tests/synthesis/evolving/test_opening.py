"""Which models a run opens, and where it keeps what they say."""

from __future__ import annotations

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.synthesis.evolving.card import card
from mmkd.synthesis.evolving.opening import Parts


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


def test_names_of_sources_and_licences_are_text_in_the_card(tmp_path):
    data = [{"source": "jsonl", "path": "rows.jsonl"}]
    empty = EvolveConfig.model_validate({"data": data, "out": str(tmp_path), "blind": None})
    lengths = {f"{name} per item": 0.0 for name in ("steps", "skills", "objects")}
    seeds = {"round": 0, "items": 1, **lengths, "in a model's words": 0, "forms": {}, "skills": {}, "answers": {}}
    made = {"evolver": "a", "judge": "b", "tools": "classical", "without the image": "not tested"}
    summary = {"rounds": [seeds], "made by": made, "records": 1, "questions": 1}
    told = card(empty, summary | {"licenses": ["MIT | <b>"], "sources": ["<script>", "two\nlines"]})
    assert "<script>" not in told
    assert "&lt;script>, two\\nlines in" in told
    assert "| licences | MIT \\| &lt;b> |" in told
