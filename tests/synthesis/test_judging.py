"""Judges: both orders, no score from garbage, and how they compare with labels."""

from __future__ import annotations

import itertools
import math

import pytest

from mmkd.errors import DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.judging.calibration import agreement_of, calibrate, kendall, level
from mmkd.synthesis.judging.judge import Item, Judge, Verdict
from mmkd.synthesis.judging.labels import LabelScorer
from mmkd.synthesis.judging.scales import CORRECTNESS
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy


def judged(proxy, endpoint, folder, items) -> tuple[dict[str, Verdict], Judge]:
    section = endpoint(proxy.url, structured="server")
    with Asker(Endpoint(section), Store(folder), reasks=1) as asker:
        judge = Judge(asker)
        return {verdict.item.id: verdict for verdict in judge.judge(items)}, judge


def words(body) -> str:
    content = body["messages"][1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def fair(body) -> str:
    """Nine for the answer "red", two for any other, wherever it stands."""
    first, second = (
        9 if "red" in part.split("Second")[0] else 2 for part in words(body).split("First")[1].split("Second")
    )
    return f'{{"reason": "seen", "first": {first}, "second": {second}}}'


def test_both_orders_are_asked_and_a_fair_judge_agrees_with_itself(endpoint, picture, tmp_path):
    items = [Item(f"i{n}", "Which color?", ("red", "blue"), (picture(n),)) for n in range(6)]
    with FaultProxy(None, content=fair) as proxy:
        verdicts, judge = judged(proxy, endpoint, tmp_path, items)
        assert len(proxy.seen) == 12
        assert all(seen.body["messages"][1]["content"][0]["type"] == "image_url" for seen in proxy.seen)
    assert {verdict.scores for verdict in verdicts.values()} == {(9.0, 2.0)}
    assert all(verdict.agree for verdict in verdicts.values())
    assert str(judge.bias).startswith("0 of 6 pairs (0.0%)")
    assert "+0.00 points" in str(judge.bias)


def test_a_judge_that_likes_the_first_answer_is_found_out(endpoint, picture, tmp_path):
    items = [Item(f"i{n}", "Which color?", ("red", "blue"), (picture(n),)) for n in range(5)]
    with FaultProxy(None, content=lambda body: '{"reason": "r", "first": 8, "second": 5}') as proxy:
        verdicts, judge = judged(proxy, endpoint, tmp_path, items)
    assert {verdict.scores for verdict in verdicts.values()} == {(6.5, 6.5)}
    assert not any(verdict.agree for verdict in verdicts.values())
    assert "5 of 5 pairs (100.0%) change their winner" in str(judge.bias)
    assert "+3.00 points" in str(judge.bias)


@pytest.mark.parametrize(
    "reply",
    [
        "First: 8, second: 3", '{"reason": "r", "first": 8}', '{"reason": "r", "first": "8", "second": 3}',
        '{"reason": "r", "first": 80, "second": 3}', '{"reason": "r", "first": -1, "second": -1}', "8\n3",
        '{"reason": "r", "first": 8.5, "second": 3}', '{"reason": "", "first": 8, "second": 3}', "{" * 5000,
    ],
)  # fmt: skip
def test_a_reply_that_is_no_grade_is_an_error_and_never_a_score(endpoint, tmp_path, reply):
    items = [Item("i", "Which color?", ("red", "blue")), Item("j", "Which?", ("red", "blue"))]
    with FaultProxy(None, content=lambda body: reply if "color" in words(body) else fair(body)) as proxy:
        verdicts, judge = judged(proxy, endpoint, tmp_path, items)
    assert verdicts["i"].scores is None
    assert verdicts["i"].error.startswith("not the form asked for: ")
    assert verdicts["j"].scores == (9.0, 2.0)
    assert judge.bias.compared == 1


def test_one_order_that_fails_leaves_the_pair_without_a_score(endpoint, tmp_path):
    def content(body) -> str:
        return fair(body) if words(body).index("red") < words(body).index("blue") else "no"

    with FaultProxy(None, content=content) as proxy:
        verdicts, _ = judged(proxy, endpoint, tmp_path, [Item("i", "Which?", ("red", "blue"))])
    assert verdicts["i"].scores is None


def test_a_single_answer_is_graded_once(endpoint, tmp_path):
    with FaultProxy(None, content=lambda body: '{"reason": "r", "score": 7}') as proxy:
        verdicts, _ = judged(proxy, endpoint, tmp_path, [Item("i", "Which?", ("red",), reference="blue")])
        assert len(proxy.seen) == 1
        assert "known to be right" in words(proxy.seen[0].body)
    assert (verdicts["i"].scores, verdicts["i"].agree) == ((7.0,), True)


def test_labels_score_without_a_model():
    items = [Item("i", "?", ("Red.", "blue"), reference="red"), Item("j", "?", ("red",))]
    known, unknown = LabelScorer().judge(items)
    assert known.scores == (10.0, 1.0)
    assert unknown.scores is None
    assert "no reference" in unknown.error


def naive_tau_b(xs, ys) -> float:
    """Kendall 1945: concordant minus discordant pairs, over the geometric mean of the pairs not tied on each side."""
    pairs = list(itertools.combinations(range(len(xs)), 2))
    both = sum(
        (xs[i] - xs[j] > 0) - (xs[i] - xs[j] < 0) == (ys[i] - ys[j] > 0) - (ys[i] - ys[j] < 0) != 0 for i, j in pairs
    )
    against = sum((xs[i] - xs[j]) * (ys[i] - ys[j]) < 0 for i, j in pairs)
    untied_x, untied_y = (sum(side[i] != side[j] for i, j in pairs) for side in (xs, ys))
    return (both - against) / math.sqrt(untied_x * untied_y)


def test_kendall_is_tau_b_of_its_definition():
    given, truth = [1, 3, 3, 7, 9, 9, 2, 5], [1, 1, 10, 10, 10, 1, 1, 10]
    assert kendall(given, truth)[0] == pytest.approx(naive_tau_b(given, truth))
    assert math.isnan(kendall([5, 5, 5], [1, 2, 3])[0])


def test_calibration_counts_what_has_no_score_apart():
    verdicts = [
        Verdict(Item(f"i{n}", "?", ("a", "b")), scores) for n, scores in enumerate([(10, 1), (9, 2), (1, 10), None])
    ]
    known = {f"i{n}": (10.0, 1.0) for n in range(4)}
    found = calibrate(verdicts, known, CORRECTNESS)
    assert (found.items, found.unscored) == (6, 2)
    assert found.table == {("high", "high"): 2, ("low", "low"): 2, ("high", "low"): 1, ("low", "high"): 1}
    assert found.agreement == pytest.approx(4 / 6)
    assert found.kappa == pytest.approx(1 / 3)
    assert "tau-b" in str(found.shown().caption)
    with pytest.raises(DataError, match="2 have a label only"):
        calibrate(verdicts[3:], known, CORRECTNESS)
    with pytest.raises(ValueError):  # a label for each answer
        calibrate(verdicts[:1], {"i0": (10.0,)}, CORRECTNESS)


def test_levels_are_thirds_and_chance_alone_is_no_agreement():
    assert [level(score, CORRECTNESS) for score in (1, 3.9, 4, 6.9, 7, 10)] == [
        "low",
        "low",
        "middle",
        "middle",
        "high",
        "high",
    ]
    assert agreement_of({("low", "low"): 1, ("low", "high"): 1, ("high", "low"): 1, ("high", "high"): 1}) == (0.5, 0.0)
    assert math.isnan(agreement_of({("low", "low"): 3})[1])
