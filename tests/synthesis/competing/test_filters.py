"""New questions by their words."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmkd.synthesis.competing.filters import Known, badly_formed, rouge_l, words


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("", "too short"),
        ("Why?", "too short"),
        ("-" * 40, "too short"),
        ("- what is left of the cup?", "starts with"),
        ("Follow the instruction above the picture.", "'instruction'"),
        ("How does the given question relate to this?", "'the given question'"),
        ("What is in <image> on the left?", "marks of a chat template"),
        ("What is this? <|im_end|>", "marks of a chat template"),
        ("What is this \x1b[2J thing here?", "control"),
        ("What is " + "very " * 300 + "big?", "at most"),
    ],
)
def test_what_is_no_question_is_refused_with_the_reason(question, reason):
    assert reason in badly_formed(question)


@pytest.mark.parametrize(
    "question",
    ["how many cats?", "图中有几只猫", "¿Cuántos gatos hay?", "3 things are red: which?", "“Open” is written where?"],
)
def test_questions_of_any_language_pass(question):
    assert badly_formed(question) == ""


def longest_common(one, other):
    """By trying every subsequence."""
    for size in range(min(len(one), len(other)), 0, -1):
        if set(combinations(one, size)) & set(combinations(other, size)):
            return size
    return 0


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(one, other):
    common = longest_common(one, other)
    precision, recall = common / max(len(one), 1), common / max(len(other), 1)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(one, other) == pytest.approx(expected)


def test_only_questions_on_the_same_picture_are_compared():
    known = Known(0.7)
    known.add(("a.png",), "How many red circles are there?")
    assert known.near(("a.png",), "how many blue circles are there") == "How many red circles are there?"
    assert known.near(("b.png",), "How many red circles are there?") == ""
    assert known.near(("a.png",), "What stands left of the house?") == ""


def test_a_similarity_of_one_refuses_the_same_words_only():
    known = Known(1.0)
    known.add(("a.png",), "How many red circles are there?")
    assert known.near(("a.png",), "how many red circles are there")
    assert not known.near(("a.png",), "how many blue circles are there?")


def test_a_script_without_spaces_is_compared_by_characters():
    assert words("图中有3只Cat") == ["图", "中", "有", "3", "只", "cat"]
