"""The loops against real servers behind a network that damages replies: whatever a real model says, each item ends as
done or as rejected for a reason. `transformers serve` answers for SmolLM2 and for a release of the demo's student (its
parts and files; it learnt nothing), `mmkd serve` for a tiny one.

MMKD_RELEASE=runs/demo/release puts the one that `make demo` trained in its place.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mmkd import assets
from mmkd.compose import compose
from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_config
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog
from mmkd.release.bundle import release
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import Kind, Outcome, assess
from mmkd.synthesis.competing.augmenting import grow
from mmkd.synthesis.competing.items import read_rows
from mmkd.synthesis.evolving.run import evolve
from mmkd.synthesis.requests import Sampling, Status
from mmkd.synthesis.store import Store
from tests.release.conftest import leave_run
from tests.synthesis.fault_proxy import FAULTS, FaultProxy
from tests.transformers_server import serving

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
QUICK = [fault for fault in FAULTS if fault not in ("hang", "drip")]


def every_third(number: int, body: dict) -> str:
    return QUICK[number // 3 % len(QUICK)] if number % 3 == 1 else ""


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """(address, name) of SmolLM2-135M under `transformers serve`."""
    from mmkd.contracts import Spec, adapter

    if not assets.is_present(assets.ASSETS["smollm2-135m"]):
        pytest.skip("the asset smollm2-135m is not in the cache; bring it with: mmkd assets")
    folder = tmp_path_factory.mktemp("smollm2")
    spec = Spec.parse("gguf:smollm2-135m")
    parts = adapter("language", spec)().load(spec, pretrained=True)
    parts.model.to(torch.bfloat16).save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    del parts
    with serving(folder, folder / "log") as url:
        yield url, str(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(address, name) of a release of the demo's parts, with compression tokens, or of MMKD_RELEASE, under
    `transformers serve`."""
    if given := os.environ.get("MMKD_RELEASE"):
        with serving(Path(given).resolve(), tmp_path_factory.mktemp("given") / "log", ours=True) as url:
            yield url, str(Path(given).resolve())
        return
    if missing := [
        name for name in ("smollm2-135m", "efficientnet-lite0") if not assets.is_present(assets.ASSETS[name])
    ]:
        pytest.skip(f"not in the cache: {', '.join(missing)}; bring them with: mmkd assets")
    folder = tmp_path_factory.mktemp("demo")
    config = load_config("demo/teacher", ["student.voco={tokens: 8, pooled: true}"])
    release(leave_run(folder / "run", config, compose(config.student, torch.bfloat16)), folder / "student")
    with serving(folder / "student", folder / "log", ours=True) as url:
        yield url, str(folder / "student")


def model(proxy: FaultProxy, name: str) -> dict:
    patient = {"concurrency": 2, "timeout": 60.0, "retry_seconds": 90.0, "check_images": False}
    return {"endpoint": {"url": proxy.url, "model": name, "license": "Apache-2.0", **patient}}


def test_an_evolution_reworded_and_answered_blindly_by_a_served_model_loses_no_item(smollm, tmp_path):
    url, name = smollm
    with FaultProxy(url, fault=every_third) as proxy:
        asked = model(proxy, name)
        settings = {
            "data": [{"source": "scenes", "split": "train", "count": 2, "grid": 2}],
            "out": str(tmp_path / "out"),
            "rounds": 1,
            "per_image": 2,
            "directions": {"interaction": 0},
            "evolver": {"model": asked, "sampling": {"max_tokens": 32}},
            "blind": {"model": asked, "tries": 1, "temperature": 0, "max_tokens": 8},
            "reasks": 1,
        }
        written = evolve(EvolveConfig.model_validate(settings))
        assert {seen.fault for seen in proxy.seen} > {""}
    ended = [json.loads(line) for line in (tmp_path / "out/rounds/1.jsonl").read_text().splitlines()]
    assert len(ended) == written.questions == 4
    for row in ended:
        assert row["kept"] or (row["kind"] and row["reason"])
    assert all_ended(next((tmp_path / "out/answers").iterdir())) > 4


def test_a_round_of_asking_real_servers_ends_each_item_with_a_score_or_a_reason(
    smollm, released, served, tiny_student, failed, tmp_path
):
    items, (url, name), (seer, demo) = list(failed[0].values())[:10], smollm, released
    graded = lambda body: '{"reason": "r", "first": 9, "second": 3}'  # noqa: E731
    with (
        FaultProxy(seer, fault=every_third) as seeing,
        FaultProxy(served, fault=every_third, content=graded) as grading,
        FaultProxy(url, fault=every_third) as reading,
    ):
        teacher, words = model(seeing, demo), model(reading, name)
        config = CompeteConfig.model_validate(
            {"out": str(tmp_path), "start": "s", "training": {"config": "t"}, "teacher": teacher, "may_be_cut": True,
             "judge": {"model": model(grading, "tiny"), "max_tokens": 32}, "reasks": 1, "sampling": {"max_tokens": 6},
             "check_teacher": False, "pool": [{"source": "scenes"}], "held_out": [{"source": "scenes"}],
             "augment": {"name": "grounded", "count": 6, "hard_share": [1.0], "rewrite": words},
             "filters": {"similarity": 1.0, "blind": {"model": words, "tries": 1}}}
        )  # fmt: skip
        log, sampling = RejectedLog(tmp_path / "log.jsonl"), Sampling(max_tokens=6)
        folder, reasks = tmp_path / "asked", config.reasks
        told = answered(config.teacher, folder, items, sampling, log, reasks, "teacher", True)
        student = ModelSection.model_validate({"vlm": {"model": str(tiny_student), "tokens": 4}})
        said = answered(student, folder, told, sampling, log, reasks, "student", True, True)
        outcomes, _ = assess(config, tmp_path, told, {item.id: item.answer for item in said}, log)
        hard = [Outcome(one.id, Kind.HARD, one.teacher, one.student, (9.0, 1.0)) for one in outcomes]
        grown = grow(config, tmp_path, 1, told, hard, config.teacher, log)
        assert all({seen.fault for seen in proxy.seen} > {""} for proxy in (seeing, grading, reading))
    aside = [json.loads(line) for line in log.path.read_text().splitlines()] if log.path.exists() else []
    assert {item.id for item in told} | {row["id"] for row in aside if row["source"] == "teacher"} == {
        item.id for item in items
    }
    assert len(outcomes) == len(told) > 5
    assert all(one.scores or (one.kind is Kind.UNSCORED and one.error) for one in outcomes)
    assert grown.drafted == len(grown.items) + sum(grown.gone.values()) == 6
    assert sum(grown.worded.values()) + grown.gone.get("no question to draw", 0) == 6
    assert all(item.question == item.template or item.question == item.said for item in grown.items)
    assert sum(all_ended(folder / who) for who in ("teacher", "student", "judge", "rewrite")) > 30


def test_a_whole_competition_on_real_servers_learns_and_grows_through_a_bad_network(
    smollm, released, competition, start, tmp_path
):
    (url, name), (seer, demo) = smollm, released
    with FaultProxy(seer, fault=every_third) as seeing, FaultProxy(url, fault=every_third) as reading:
        words = model(reading, name)
        process = start(
            competition(
                teacher=model(seeing, demo), check_teacher=False, reasks=1, floor=1.0, gap=1.0, may_be_cut=True,
                pool=[{"source": "scenes", "split": "train", "count": 3, "grid": 2, "questions": 4}],
                augment={"name": "grounded", "count": 6, "rewrite": words},
                filters={"similarity": 1.0, "blind": {"model": words, "tries": 1}},
            )
        )  # fmt: skip
        process.join(600)
        assert process.exitcode == 0
        assert {seen.fault for seen in seeing.seen} == {"", *QUICK}
        assert {seen.fault for seen in reading.seen} > {""}
    out = tmp_path / "competition"
    rows = read_rows(out / "rounds.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all(row["held_out"]["scored"] >= 18 for row in rows)  # of 20
    new = rows[1]["augmented"]
    assert new["drafted"] == new["kept"] + sum(new["gone"].values()) == 6
    assert new["pool"] == rows[0]["pool"] + new["kept"] > rows[0]["pool"]
    assert sum(all_ended(out / "asked" / who) for who in ("teacher", "student", "rewrite", "blind")) > 100


def all_ended(folder: Path) -> int:
    """How many requests a store holds, each answered, or given up for a reason."""
    with Store(folder) as store:
        last = {entry.key: entry for entry in store.entries()}
    for entry in last.values():
        assert entry.text if entry.status is Status.DONE else entry.reason
        assert entry.status is not Status.UNUSABLE
    return len(last)
