"""Seeds come in one by one; means and paired differences are made of what is there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench.rows import Row, append, read, surroundings
from bench.scores import add_new, by_case, difference, mean
from mmkd.errors import DataError


@pytest.fixture(scope="module")
def around():
    return surroundings()


def row(around, case: str, seed: int, value: float) -> Row:
    return Row("toy_seeds", f"acc@{case} seed {seed}", value, "%", (seed,), None, None, "none", "0" * 16, **around)


def test_a_mean_takes_the_newest_row_of_each_seed(around, tmp_path):
    append([row(around, "ce k=1", 0, 1.0), row(around, "ce k=1", 1, 4.0), row(around, "ce k=1", 0, 2.0)], tmp_path)
    found = mean("toy", "acc@ce k=1", by_case("toy", tmp_path)["acc@ce k=1"])
    assert (found.value, found.seeds, found.metric) == (3.0, (0, 1), "acc@ce k=1")
    assert found.spread == pytest.approx(math.sqrt(2))


def test_a_gain_is_paired_seed_by_seed(around, tmp_path):
    ours, theirs = {0: 5.0, 1: 9.0, 2: 7.0}, {0: 4.0, 1: 8.0, 2: 5.0}
    rows = [row(around, "kl k=1", s, v) for s, v in ours.items()]
    append(rows + [row(around, "ce k=1", s, v) for s, v in theirs.items()], tmp_path)
    gain, low, high = difference("toy", "kl", "ce", by_case("toy", tmp_path))
    assert gain.value == pytest.approx(4 / 3)
    assert (gain.against, gain.seeds) == ("ce k=1", (0, 1, 2))
    assert gain.spread == pytest.approx(math.sqrt(1 / 3))
    half = 4.302653 * math.sqrt(1 / 3) / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (low.value, high.value) == pytest.approx((4 / 3 - half, 4 / 3 + half), rel=1e-5)


def test_gains_of_all_metrics_of_a_bench_have_names_of_their_own_and_their_units(around, tmp_path):
    units = {"score": "points", "acc_count": "%", "trained_tokens": "tokens"}
    for number, (metric, unit) in enumerate(units.items()):
        for case, seed in [("a", 0), ("a", 1), ("b", 0), ("b", 1)]:
            value = float(number + seed + (case == "a") * (number + 1 + seed))
            found = replace(row(around, "", seed, value), metric=f"{metric}@{case} round=1 seed {seed}", unit=unit)
            append([found], tmp_path)
    gains = {one.metric: (one.value, one.unit) for one in difference("toy", "a", "b", by_case("toy", tmp_path))}
    case = "@a against b, round=1"
    assert gains[f"gain{case}"] == (1.5, "points")
    assert gains[f"gain_count{case}"] == (2.5, "points")
    assert gains[f"gain_trained_tokens{case}"] == (3.5, "tokens")
    assert len(gains) == 9


def test_two_cases_without_shared_seeds_are_not_compared(around, tmp_path):
    append([row(around, "kl k=1", 0, 5.0), row(around, "ce k=1", 1, 4.0)], tmp_path)
    with pytest.raises(DataError, match="no two seeds"):
        difference("toy", "kl", "ce", by_case("toy", tmp_path))


def test_a_run_that_has_its_row_gets_no_second_one(around, tmp_path):
    first = row(around, "ce k=1", 0, 1.0)
    add_new("toy", [first], tmp_path)
    add_new("toy", [row(around, "ce k=1", 0, 2.0), row(around, "ce k=1", 1, 3.0)], tmp_path)
    assert [(found.metric, found.value) for found in read("toy_seeds", tmp_path)] == [
        ("acc@ce k=1 seed 0", 1.0),
        ("acc@ce k=1 seed 1", 3.0),
    ]
