"""Whole competitions, with real trainings of a tiny student and a teacher behind HTTP."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.load import load_as, load_config
from mmkd.data.record_files import jsonl
from mmkd.errors import ConfigError
from mmkd.report.run_folder import read_metrics
from mmkd.synthesis.competing.compete import compete
from mmkd.synthesis.competing.items import read_items, read_rows
from tests.synthesis.fault_proxy import FaultProxy
from tests.train.conftest import save_tiny_model

pytestmark = pytest.mark.slow


def finish(process: BaseProcess) -> None:
    process.join(900)
    assert process.exitcode == 0


def test_two_rounds_leave_pools_verdicts_pairs_and_a_row_each(competition, start, tmp_path):
    later = {"config": str(tmp_path / "training.yaml"), "overrides": ["training.log_every=1"]}
    finish(start(competition(later_training=later)))
    out = tmp_path / "competition"
    rows = read_rows(out / "rounds.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2]
    logged = [len(read_metrics(out / f"round-{number}" / "student" / "metrics.jsonl")) for number in (1, 2)]
    assert logged == [2, 4]
    first, second = read_items(out / "pool" / "0.jsonl"), read_items(out / "pool" / "1.jsonl")
    given = read_items(out / "given" / "pool.jsonl")
    assert 0.7 * len(given) < len(first) < len(given)  # the teacher is wrong one time in ten, and that is not learned
    assert all(item.answer == item.reference and item.model == "oracle" for item in first)
    assert second[: len(first)] == first
    new = second[len(first) :]
    assert rows[1]["augmented"]["kept"] == len(new) > 2
    assert all(item.round == 1 and item.engine == "grounded/hard" and item.answer == item.reference for item in new)
    assert {item.parent for item in new} <= {item.id for item in first}
    learned = jsonl(str(out / "round-2" / "training.jsonl"))
    assert {record.provenance.engine for record in learned} == {"compete", "compete/grounded/hard"}
    assert all(record.provenance.license == "MIT" for record in learned)
    verdicts = read_rows(out / "round-1" / "verdicts.jsonl")
    assert {row["id"] for row in verdicts} == {item.id for item in first}
    pairs = read_rows(out / "round-1" / "preferences.jsonl")
    assert len(pairs) == sum(row["kind"] in ("hard", "win") for row in verdicts) > 0
    assert pairs[0]["chosen"][0]["content"] != pairs[0]["rejected"][0]["content"]
    held = {image for item in read_items(out / "given" / "held_out.jsonl") for image in map(Path, item.images)}
    assert not {Path(image).resolve() for r in learned for image in r.images} & {image.resolve() for image in held}


@pytest.fixture
def pretraining(competition, tiny_student, tmp_path) -> Callable[[str], dict[str, Any]]:
    """Changes by which the tiny student learns four scenes of a split before the first round."""

    def change(split: str) -> dict[str, Any]:
        competition()
        plan = yaml.safe_load((tmp_path / "training.yaml").read_text())
        scenes = {"source": "scenes", "split": split, "count": 4, "grid": 2}
        plan |= {"student": {"init": str(tiny_student)}, "data": {"mixture": [scenes], "max_length": 1024}}
        (tmp_path / "pretraining.yaml").write_text(yaml.safe_dump(plan))
        return {"start": None, "pretraining": {"config": str(tmp_path / "pretraining.yaml")}, "rounds": 1}

    return change


def test_the_first_round_starts_from_the_model_of_stage_1(competition, pretraining, start, tiny_student, tmp_path):
    finish(start(competition(**pretraining("train"), seed=5)))
    out = tmp_path / "competition"
    stage, first = (load_config(str(out / run / "config.yaml")) for run in ("pretraining", "round-1/student"))
    assert stage.run.seed == 5
    assert first.student.init == str(out / "pretraining" / "model")
    weights = [load_file(folder / "model.safetensors") for folder in (tiny_student, out / "pretraining" / "model")]
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert [row["round"] for row in read_rows(out / "rounds.jsonl")] == [0, 1]


def test_no_picture_of_the_held_out_split_is_in_the_data_of_stage_1(competition, pretraining, tmp_path):
    config = load_as(competition(**pretraining("validation")), [], CompeteConfig)
    with pytest.raises(ConfigError, match=r"held_out and the data of pretraining share 2 pictures"):
        compete(config)
    assert not (tmp_path / "competition" / "pretraining").exists()


def test_a_model_may_judge_write_check_and_be_blind(competition, start, tmp_path, oracle):
    model = {"endpoint": {"url": oracle, "model": "oracle", "license": "Apache-2.0"}}
    augment = {"name": "llm", "count": 24, "hard_share": [1.0], "model": model}
    filters = {"similarity": 1.0, "grounding": model, "blind": {"model": model}}
    refining = {"refine": {"model": model}, "preference_training": {"config": str(tmp_path / "preferring.yaml")}}
    config = competition(judge={"model": model}, augment=augment, filters=filters, labels=False, **refining)
    finish(start(config))
    out = tmp_path / "competition"
    rows = read_rows(out / "rounds.jsonl")
    gone = rows[1]["augmented"]["gone"]
    assert {"form", "does not fit the picture", "needs no picture"} <= gone.keys()
    assert sum(gone.values()) + rows[1]["augmented"]["kept"] == 24
    assert rows[1]["compared"] > 0
    assert rows[1]["disagreed"] == 0
    assert all(row["held_out"]["unscored"] == 0 for row in rows)  # also where the student said nothing
    mended = read_rows(out / "round-1" / "refined.jsonl")
    pairs = read_rows(out / "round-1" / "preferences.jsonl")
    assert rows[1]["refined"]["kept"] == len(mended) == sum(pair["winner"] == "refiner" for pair in pairs) > 0
    assert (rows[1]["preferred"], rows[2]["preferred"]) == (0, len(pairs))
    trained = read_metrics(out / "round-2" / "preferred" / "metrics.jsonl")
    assert trained[-1].step == 2
    card = (out / "card.md").read_text()
    assert all(kind in card for kind in gone)
    assert "MIT AND Apache-2.0" in card
    new = [item for item in read_items(out / "pool" / "1.jsonl") if item.round == 1]
    assert new
    assert all(item.prompt.startswith("compete_augment v1") and item.license == "MIT AND Apache-2.0" for item in new)
    assert not any(item.answer in ("0", "no") for item in new)  # what the blind one says
    reasons = [json.loads(line)["kind"] for line in (out / "rejected" / "augment-1.jsonl").read_text().splitlines()]
    assert reasons.count("form") == gone["form"]


def graded_by_hash(body: dict) -> str:
    """A judge to whom random answers differ: each has one grade in both orders, and about half are good enough."""
    content = next(message for message in body["messages"] if message["role"] == "user")["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    first, second = [part for _, part in re.findall(r"--- (\w{8})\n(.*?)\n--- \1", text, re.DOTALL)][-2:]
    grades = [1 + hashlib.sha256(said.encode()).digest()[0] % 10 for said in (first, second)]
    return json.dumps({"reason": "by its hash", "first": grades[0], "second": grades[1]})


def test_a_teacher_learns_what_the_student_won_and_answers_anew(competition, start, tmp_path):
    old, out = tmp_path / "teacher", tmp_path / "competition"
    save_tiny_model(old, seed=1, layers=2, voco=None)
    config = competition()
    plan = yaml.safe_load((tmp_path / "training.yaml").read_text())
    plan["stages"] = [
        {"name": "learn", "steps": 4, "learning_rate": 0.05, "batch_size": 4, "lora": {"rank": 2}, "trainable": []}
    ]
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(plan))
    with FaultProxy(None, content=graded_by_hash) as judge:
        endpoint = {"url": judge.url, "model": "judge", "license": "MIT", "check_images": False}
        config = competition(
            teacher={"vlm": {"model": str(old), "license": "MIT"}},
            judge={"model": {"endpoint": endpoint}},
            feedback="mutual",
            teacher_training={"config": str(tmp_path / "teacher.yaml")},
            check_teacher=False,
            may_be_cut=True,
            floor=5,
        )
        finish(start(config))
    wins = {row["id"]: row for row in read_rows(out / "round-1" / "verdicts.jsonl") if row["kind"] == "win"}
    taught = jsonl(str(out / "round-1" / "teaching.jsonl"))
    assert 0 < len(taught) <= len(wins)
    said = {row["student"] for row in wins.values() if row["scores"][1] >= 5 and row["student"].strip()}
    assert {turn.text for record in taught for turn in record.turns if turn.role == "assistant"} == said
    before, after = (load_file(folder / "model.safetensors") for folder in (old, out / "round-1" / "teacher" / "model"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert all(".layers." in name and name.endswith("proj.weight") for name in moved)
    first, second = read_items(out / "pool" / "0.jsonl"), read_items(out / "pool" / "1.jsonl")
    anew = {item.id: item.answer for item in second}
    assert any(anew[item.id] != item.answer for item in first if item.id in anew)
