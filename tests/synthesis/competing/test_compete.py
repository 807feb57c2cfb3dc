"""Whole competitions, with real trainings of a tiny student and a teacher behind HTTP."""

from __future__ import annotations

import json
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mmkd.data.record_files import jsonl
from mmkd.report.run_folder import read_metrics
from mmkd.synthesis.competing.items import read_items, read_rows

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
