"""Rows: whole or refused, appended only, compared over the same seeds."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from importlib.metadata import version

import pytest

from bench.prefill_cost import figures
from bench.rows import (
    FIELDS,
    ROOT,
    Row,
    append,
    config_hash,
    newest,
    paired,
    read,
    row_from,
    surroundings,
    with_overrides,
)
from mmkd.config.load import load_config
from mmkd.errors import DataError
from mmkd.evaluate.costs import Cost, Latency

WHOLE = {
    "bench": "toy",
    "metric": "accuracy@k=1",
    "value": 98.5,
    "unit": "%",
    "seeds": [0, 1, 2],
    "spread": 0.3,
    "against": None,
    "command": "make demo",
    "config_hash": "0123456789abcdef",
    "commit": "a" * 40,
    "versions": {"torch": "2.14.1"},
    "machine": "2 cores",
    "date": "2026-01-02T03:04:05+00:00",
}


def row(**changed) -> Row:
    return row_from(WHOLE | changed, "here")


@pytest.mark.parametrize("name", FIELDS)
def test_a_row_with_a_missing_field_is_refused_by_name(name):
    with pytest.raises(DataError, match=f"here: {name} is missing"):
        row_from({key: value for key, value in WHOLE.items() if key != name}, "here")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("value", math.nan, "not a finite number"),
        ("value", "98.5", "not a finite number"),
        ("value", True, "not a finite number"),
        ("spread", -1, "neither null nor a number"),
        ("spread", None, "several seeds"),
        ("seeds", [], "not a list of whole numbers"),
        ("seeds", [0.5], "not a list of whole numbers"),
        ("unit", " ", "unit ' ' is not a text"),
        ("command", "", "command '' is not a text"),
        ("commit", "11f94a0", "not a full commit"),
        ("config_hash", "none", "not a hexadecimal digest"),
        ("versions", {}, "does not name packages"),
        ("date", "yesterday", "not an ISO date"),
        ("bench", "../rows", "not a file name"),
    ],
)
def test_a_row_with_an_unusable_value_is_refused_and_says_why(name, value, message):
    with pytest.raises(DataError, match=message):
        row(**{name: value})


def test_a_field_that_rows_do_not_have_is_refused():
    with pytest.raises(DataError, match="colour is not a field"):
        row_from(WHOLE | {"colour": "red"}, "here")


def test_rows_are_appended_and_read_back_in_order(tmp_path):
    append([row(value=1.0)], tmp_path)
    before = (tmp_path / "toy.jsonl").read_bytes()
    append([row(value=2.0), row(metric="accuracy@k=2")], tmp_path)
    assert (tmp_path / "toy.jsonl").read_bytes().startswith(before)
    assert [r.value for r in read("toy", tmp_path)] == [1.0, 2.0, 98.5]
    assert [(r.metric, r.value) for r in newest(read("toy", tmp_path))] == [
        ("accuracy@k=1", 2.0),
        ("accuracy@k=2", 98.5),
    ]


def test_nothing_is_written_where_one_of_the_rows_is_broken(tmp_path):
    broken = Row(**WHOLE | {"value": math.inf, "seeds": (0,)})
    with pytest.raises(DataError, match="row 2 of 2"):
        append([row(), broken], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_torn_or_foreign_line_is_named(tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_text(json.dumps(WHOLE) + "\n" + json.dumps(WHOLE)[:40])
    with pytest.raises(DataError, match=r"toy\.jsonl:2: not JSON"):
        read("toy", tmp_path)
    with pytest.raises(DataError, match="torn"):
        append([row()], tmp_path)
    path.write_text(json.dumps(WHOLE | {"bench": "other"}) + "\n")
    with pytest.raises(DataError, match="belongs to bench 'other'"):
        read("toy", tmp_path)
    with pytest.raises(DataError, match="'nothing' has no rows; there are toy"):
        read("nothing", tmp_path)


def test_a_paired_comparison_is_students_interval_of_the_differences():
    found = paired({0: 99.1, 1: 98.7, 2: 99.4}, {0: 98.0, 1: 98.1, 2: 98.5})
    differences = [1.1, 0.6, 0.9]
    assert found.mean == pytest.approx(statistics.mean(differences))
    assert found.spread == pytest.approx(statistics.stdev(differences))
    reach = 4.302653 * statistics.stdev(differences) / math.sqrt(3)  # t of 2 degrees of freedom, from a printed table
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), rel=1e-5)
    assert found.settled
    assert not paired({0: 99.0, 1: 98.0, 2: 97.0}, {0: 98.0, 1: 98.0, 2: 98.0}).settled
    assert not paired({0: 99.0, 1: 99.1}, {0: 1.0, 1: 1.1}).settled  # two seeds settle nothing


def test_pairing_needs_the_same_seeds_on_both_sides():
    with pytest.raises(DataError, match="same seeds"):
        paired({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})
    with pytest.raises(DataError, match="same seeds"):
        paired({0: 1.0}, {0: 1.0})


def test_the_hash_of_a_config_does_not_hang_on_the_order_of_its_keys():
    config = load_config("demo/teacher")
    assert config_hash(config) == config_hash(dict(reversed(config.model_dump(mode="json").items())))
    assert config_hash(config) != config_hash(load_config("demo/teacher", ["run.seed=1"]))


def test_what_surrounds_a_figure_makes_a_whole_row():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    here = row(**surroundings())
    assert here.commit.removesuffix("-dirty") == head.stdout.strip()
    assert here.versions["torch"] == version("torch")


def test_figures_of_the_prefill_bench_follow_from_costs_and_times():
    costs = {"1": Cost(1, 11, 100, 50, 20, 5), "full": Cost(16, 11, 1600, 40, 25, 5)}
    times = {"1": Latency([2.0, 2.2], [1.0, 1.0]), "full": Latency([4.0, 4.0], [1.0, 2.0])}
    found = {metric: (value, spread, against) for metric, value, _, spread, against in figures(costs, times)}
    assert found["kv_share@k=1"][:2] == (1 / 16, None)
    assert found["cold_prefill@full"][0] == 65 / 1e6
    assert found["prefill_time_ratio@k=1"][0] == pytest.approx(statistics.median([0.5, 0.55]))
    assert found["decode_time_ratio@k=1"][1] == pytest.approx(statistics.stdev([1.0, 0.5]))
    assert found["prefill_time_ratio@k=1"][2].startswith("full vision")
    assert found["prefill@full"][2] is None


def test_a_command_names_the_overrides_it_was_given_as_a_shell_takes_them():
    command = with_overrides("python -m bench.x runs/x", training=["stages[0].steps=400", "a={b: 1}"], evolve=[])
    assert command == "python -m bench.x runs/x --training 'stages[0].steps=400' 'a={b: 1}'"
