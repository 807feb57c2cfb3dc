"""What is read from a run, and what is drawn of it."""

from __future__ import annotations

import json
import re

import pytest

from mmkd.report.answers import sample_answers
from mmkd.report.curves import headline_metric, style_of, training_charts
from mmkd.report.plots import Line, line_chart, ticks
from mmkd.report.run_folder import Scored, read_metrics, read_run
from tests.report.conftest import write_scores


def metrics(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_metrics(path)


def test_a_step_that_a_resumed_run_wrote_twice_counts_once_and_the_later_one_wins(tmp_path):
    found = metrics(
        tmp_path / "m.jsonl",
        {"stage": "a", "step": 10, "loss": 5.0},
        {"stage": "a", "step": 20, "loss": 4.0},
        {"stage": "a", "step": 20, "loss": 3.0},
    )
    assert [(row.step, row.values["loss"]) for row in found] == [(10, 5.0), (20, 3.0)]


def test_stages_stand_one_after_the_other_and_nan_is_left_out(tmp_path):
    found = metrics(
        tmp_path / "m.jsonl",
        {"stage": "align", "step": 10, "loss": 5.0},
        {"stage": "align", "step": 20, "loss": float("nan")},
        {"stage": "tune", "step": 10, "loss": 1.0},
    )
    assert [(row.stage, row.step) for row in found] == [("align", 10), ("align", 20), ("tune", 30)]
    (chart,) = [chart for chart in training_charts(found) if chart.title == "Loss"]
    assert "nan" not in chart.svg
    assert ">tune</text>" in chart.svg


def test_a_measure_by_token_count_is_a_line_for_each_count(tmp_path):
    rows = [{"stage": "a", "step": s, "ce": 9.0, "k8/ce": 1.0, "k1/ce": 2.0, "full/ce": 0.5} for s in (1, 2)]
    (chart,) = training_charts(metrics(tmp_path / "m.jsonl", *rows))
    assert chart.legend == [("k = 1", "k0"), ("k = 8", "k3"), ("full", "full")]
    assert [style_of(str(k)) for k in (1, 2, 4, 8, 16, 64)] == ["k0", "k1", "k2", "k3", "k4", "k4"]


def scored(folder, *readings):
    return [Scored("toy", r, {"acc": 1.0}, {}, folder / f"toy-{r}.samples.jsonl") for r in readings]


def test_scores_are_ordered_from_few_tokens_to_full_to_blind(tmp_path):
    for reading in ("full", "blind", "16", "2"):
        write_scores(tmp_path / "eval", reading, 0.5, "x")
    assert [one.reading for one in read_run(tmp_path).scored] == ["2", "16", "full", "blind"]


def test_questions_are_spread_evenly_and_missed_ones_are_one_a_picture(tmp_path):
    write_scores(tmp_path / "eval", "1", 0.5, "x", questions=60)
    write_scores(tmp_path / "eval", "full", 1.0, "x", questions=60)
    write_scores(tmp_path / "teacher", "full", 0.0, "x", questions=60)
    (teacher,) = scored(tmp_path / "teacher", "full")
    even, missed = sample_answers(scored(tmp_path / "eval", "1", "full"), teacher)
    assert [asked.question for asked in even] == [f"{i}: x" for i in (0, 10, 20, 30, 40, 50)]
    assert len({asked.doc["file"] for asked in missed}) == len(missed) == 4
    assert [(said.by, said.right) for said in even[0].answers] == [("teacher", False), ("k = 1, full", True)]
    assert [(said.by, said.right) for said in missed[0].answers] == [
        ("teacher", False),
        ("k = 1", False),
        ("full", True),
    ]


@pytest.mark.parametrize(
    ("measure", "scores", "right"),
    [
        ({"acc": 1.0}, {"acc": 0.5}, True),
        ({"acc": 0.0}, {"acc": 0.5}, False),
        ({"f1": 0.4, "acc": 1.0}, {"f1": 0.4, "acc": 0.5}, True),
        ({"exact_match": 0.0}, {"other/acc": 0.5, "toy/exact_match": 0.2}, False),
        ({"exact_match": 0.6}, {"exact_match": 0.5}, None),  # half of the humans said so
        ({"pope_accuracy": {"score": 1.0, "prediction": "no"}}, {"pope_accuracy": 0.5}, True),
        ({"grade": 1}, {"grade": 3.5}, None),  # a grade from 1 to 5
        ({"submission": {"answer": "3.5"}}, {"acc": 0.5}, None),
    ],
)
def test_an_answer_is_right_where_the_suite_scored_it_1_and_neither_where_it_says_nothing(
    tmp_path, measure, scores, right
):
    row = {"task": "toy", "doc_id": 0, "doc": {"question": "?"}, "target": ["35", "3.5"], "filtered_resps": ["3.5"]}
    (tmp_path / "toy-1.samples.jsonl").write_text(json.dumps(row | measure) + "\n")
    one = Scored("toy", "1", scores, {}, tmp_path / "toy-1.samples.jsonl")
    ((asked,), missed) = sample_answers([one], None)
    assert [said.right for said in asked.answers] == [right]
    rows = [row | measure | {"doc_id": i, "doc": {"question": "?", "file": i}} for i in range(12)]
    one.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, missed = sample_answers([one], None)
    assert bool(missed) == (right is False)


def test_accuracy_stands_for_a_suite_where_it_has_one():
    assert headline_metric([Scored("s", "1", {"f1": 1, "acc": 1}, {}, None)]) == "acc"
    assert headline_metric([Scored("s", "1", {"mme/score": 1200}, {}, None)]) == "mme/score"


def heights(chart) -> list[float]:
    points = re.search(r'points="([^"]+)"', chart.svg)[1]
    return [float(point.split(",")[1]) for point in points.split()]


def test_a_higher_value_stands_higher_and_a_wide_range_becomes_logarithmic():
    low, middle, high = heights(line_chart("t", [Line("a", [(0, 1.0), (1, 2.0), (2, 3.0)], "s0")]))
    assert low > middle > high
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    low, middle, high = heights(line_chart("t", [Line("a", [(0, 0.01), (1, 1.0), (2, 100.0)], "s0")]))
    assert low - middle == pytest.approx(middle - high, abs=0.2)


@pytest.mark.parametrize("points", [[(5, 0.0)], [(1, 2.0), (2, 2.0)], [(1, -1.0), (2, 0.0)], [(1, 1e-12), (2, 1e12)]])
def test_flat_single_negative_and_extreme_series_are_drawn_inside_the_chart(points):
    svg = line_chart("t", [Line("a", points, "s0")]).svg
    places = [float(y) for y in re.findall(r'(?:cy|y1)="([-0-9.]+)"', svg)] + [
        float(point.split(",")[1]) for found in re.findall(r'points="([^"]+)"', svg) for point in found.split()
    ]
    assert places
    assert all(0 <= y <= 236 for y in places)


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(93, 99.5) == [94, 96, 98]
