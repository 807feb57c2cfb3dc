"""Answers and rationales as views of a row, and what each token of them counts."""

from __future__ import annotations

import pytest

from mmkd.data.rationales import CONCLUDE, EXPLAIN, token_weights, views
from mmkd.data.records import Turn
from mmkd.data.rejected import BadRow

ROW = [
    Turn("system", "Be short."),
    Turn("user", "How many?"),
    Turn("assistant", "2", "There are two."),
    Turn("user", "Red?"),
    Turn("assistant", "no"),
]


def said(view):
    return [turn.text for turn in view.turns], view.kinds


def test_separate_leaves_the_chat_as_it_is_and_adds_one_of_the_rationales():
    first, second = views(ROW, "separate")
    assert said(first) == (["Be short.", "How many?", "2", "Red?", "no"], ["answer", "answer"])
    assert said(second) == (["Be short.", f"How many? {EXPLAIN}", "There are two."], ["rationale"])


def test_answer_first_explains_behind_the_answer_and_rationale_first_concludes_behind_the_rationale():
    (view,) = views(ROW, "answer_first")
    texts = ["Be short.", "How many?", "2", EXPLAIN, "There are two.", "Red?", "no"]
    assert said(view) == (texts, ["answer", "rationale", "answer"])
    (view,) = views(ROW, "rationale_first")
    texts = ["Be short.", f"How many? {EXPLAIN}", "There are two.", CONCLUDE, "2", "Red?", "no"]
    assert said(view) == (texts, ["rationale", "answer", "answer"])


@pytest.mark.parametrize("mode", ["separate", "answer_first", "rationale_first"])
def test_a_row_without_a_rationale_is_trained_on_its_answer_alone(mode):
    (view,) = views(ROW[3:], mode)
    assert said(view) == (["Red?", "no"], ["answer"])


def test_each_turn_counts_by_its_own_length_and_rationales_by_lambda():
    weights, answers = token_weights([0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1], ["answer", "rationale", "answer"], 0.5)
    assert weights == [0, 0, 0.5, 0.5, 0, 0.125, 0.125, 0.125, 0.125, 0, 0, 1]
    assert answers == 2


def test_turns_that_were_left_out_to_fit_count_nothing_and_turns_too_many_are_refused():
    assert token_weights([0, 1, 1], ["answer", "rationale"], 1.0) == ([0, 0.5, 0.5], 1)
    with pytest.raises(BadRow, match="told apart"):
        token_weights([1, 0, 1], ["answer"], 1.0)
