"""Competition against training alone: what the cases share, and what their rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.competed import CASES, WIDE, configured, nothing, of_rounds
from mmkd.synthesis.competing.assessing import Kind, kind_of
from mmkd.synthesis.competing.augmentors.registry import augmentor

GIVEN = ["pretraining=null", "start=runs/start", "teacher.vlm.model=runs/teacher"]


def test_cases_differ_in_what_is_asked_anew_alone_and_no_round_is_left_out():
    configs = {case: configured(Path("runs") / case, case, 2, GIVEN) for case in CASES}
    plain = [config.model_dump(exclude={"out", "augment", "assess", "gap"}) for config in configs.values()]
    assert all(one == plain[0] for one in plain)
    augment = {case: config.augment.model_dump(exclude={"hard_share"}) for case, config in configs.items()}
    assert augment["undirected"] == augment["competition"]
    assert configs["alone"].augment.name == "nothing" != configs["competition"].augment.name
    assert configs["alone"].stop.patience == configs["alone"].rounds == 4
    assert augmentor("nothing") is nothing


def test_without_direction_nothing_that_a_teacher_answers_well_is_difficult():
    config = configured(Path("runs/c"), "undirected", 0, GIVEN)
    assert {kind_of((10.0, student), config.gap, config.floor) for student in (1.0, 5.0, 10.0)} == {Kind.EASY}


def test_a_simple_pool_lacks_most_of_what_is_held_out():
    wide, simple = (configured(Path("runs/c"), "competition", 0, given) for given in ([*GIVEN, WIDE], GIVEN))
    assert [one.options() for one in simple.pool] == [
        {**one.options(), "types": ["count", "existence"]} for one in wide.pool
    ]
    assert "types" not in simple.held_out[0].options()
    assert wide.model_dump(exclude={"pool"}) == simple.model_dump(exclude={"pool"})


def test_a_round_is_held_against_the_one_before_and_its_teacher(tmp_path):
    config = configured(tmp_path, "alone", 2, GIVEN)
    held = [{"student": 2.0, "teacher": 8.0, "win_rate": 0.125}, {"student": 6.5, "teacher": 8.0, "win_rate": 0.375}]
    rounds = tmp_path / "rounds.jsonl"
    rows = [{"round": number, "pool": 10 + number, "held_out": one} for number, one in enumerate(held)]
    rounds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "round-1" / "student"
    run.mkdir(parents=True)
    lines = [{"step": step, "stage": "round", "tokens": 10 * step} for step in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {
        row.metric: row.value
        for row in of_rounds("competed", "alone", config, rounds, "python -m bench.competed runs/c")
    }
    assert found == {
        "score@alone round=0 seed 2": 2.0,
        "behind_teacher@alone round=0 seed 2": 6.0,
        "win_rate@alone round=0 seed 2": pytest.approx(12.5),
        "pool@alone round=0 seed 2": 10,
        "score@alone round=1 seed 2": 6.5,
        "behind_teacher@alone round=1 seed 2": 1.5,
        "win_rate@alone round=1 seed 2": pytest.approx(37.5),
        "pool@alone round=1 seed 2": 11,
        "rise@alone round=1 seed 2": 4.5,
        "trained_tokens@alone round=1 seed 2": 300,
    }
