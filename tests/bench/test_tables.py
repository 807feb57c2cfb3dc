"""The docs' tables: written from rows, never typed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.prefill_cost import BENCHES
from bench.rows import append, newest, read, row_from
from bench.tables import documents, filled, main, table
from mmkd.errors import DataError
from tests.bench.test_rows import WHOLE


def rows():
    first = row_from(WHOLE, "here")
    single = replace(first, metric="bytes@k=1", value=4608, unit="bytes", seeds=(0,), spread=None)
    return [first, replace(first, metric="accuracy@full", value=99.0), single]


@pytest.fixture
def results(tmp_path):
    append(rows(), tmp_path)
    return tmp_path


def test_the_committed_docs_agree_with_the_committed_rows():
    assert main(["--check"]) == 0
    assert any("<!-- bench " in path.read_text(encoding="utf-8") for path in documents())


def test_a_case_is_a_row_a_measure_a_column_and_the_way_of_measuring_stands_below():
    lines = table(rows()).strip().splitlines()
    assert lines[0] == "|  | accuracy (%) | bytes (bytes) |"
    assert lines[2:4] == ["| k=1 | 98.50 ± 0.3 | 4,608 |", "| full | 99 ± 0.3 |  |"]
    assert "`make demo`, seeds 0, 1, 2, commit aaaaaaaaaa, 2 cores, 2026-01-02." in lines[-1]
    assert "seed 0," in lines[-1]


def test_a_newer_row_takes_the_place_of_an_older_one():
    assert "97 ± 0.3" in table([*rows(), replace(rows()[0], value=97.0)])
    assert "98.50" not in table([*rows(), replace(rows()[0], value=97.0)])


def test_only_what_stands_between_the_markers_changes_and_twice_is_as_once(results):
    text = "before\n<!-- bench toy: bytes -->\nold | typed | 1\n<!-- /bench -->\nafter\n    <!-- bench x -->\n"
    once = filled(text, "README.md", results)
    assert once.startswith("before\n<!-- bench toy: bytes -->\n")
    assert once.endswith("<!-- /bench -->\nafter\n    <!-- bench x -->\n")
    assert "typed" not in once
    assert "4,608" in once
    assert "accuracy" not in once
    assert filled(once, "README.md", results) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench toy -->\n", "not closed"),
        ("<!-- /bench -->\n", "not closed"),
        ("<!-- bench gone -->\n<!-- /bench -->\n", "README.md: bench 'gone' has no rows; there are toy"),
        ("<!-- bench toy: colour -->\n<!-- /bench -->\n", "no row measures colour; there are accuracy, bytes"),
    ],
)
def test_a_wrong_marker_is_named(results, text, message):
    with pytest.raises(DataError, match=message):
        filled(text, "README.md", results)


def test_a_column_has_one_unit():
    with pytest.raises(DataError, match="units %, points"):
        table([*rows(), replace(rows()[0], metric="accuracy@k=2", unit="points")])


def test_text_of_a_row_cannot_break_the_table():
    assert table([replace(rows()[0], metric="accuracy@a|b<script>")]).count("a\\|b&lt;script>") == 1


def test_the_committed_kv_bytes_are_k_sixteenths_of_full_vision():
    found = {row.metric: row.value for row in newest(read(BENCHES["demo"]))}
    for k in (1, 2, 4, 8):
        assert found[f"kv_bytes@k={k}"] * 16 == found["kv_bytes@full"] * k
        assert found[f"kv_share@k={k}"] == k / 16
