"""Answers as VQA's evaluation compares them, and how many people's answers make one right."""

from __future__ import annotations

import pytest

from mmkd.evaluate.matching import exact, vqa_plain, vqa_soft


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Red  Ball.", "red ball"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("2.5 m.", "2.5 m"),
        ("black-and-white", "black and white"),
        ("black - white", "black white"),
        ("don't", "dont"),
        ("yes!", "yes"),
        ("an", ""),
        ("at 10:30", "at 10:30"),
    ],
)
def test_an_answer_loses_what_does_not_count(text, plain):
    assert vqa_plain(text) == plain


def naive(answer: str, truths: list[str]) -> float:
    """From the definition: each human left out once; of the others, three who say so are enough."""
    scores = []
    for left_out in range(len(truths)):
        others = [truth for place, truth in enumerate(truths) if place != left_out]
        scores.append(min(1.0, others.count(answer) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("people", [4, 7, 10])
def test_soft_accuracy_is_the_mean_over_leaving_one_human_out(people):
    for right in range(people + 1):
        truths = ["red"] * right + ["blue"] * (people - right)
        assert vqa_soft("Red", truths) == pytest.approx(naive("red", truths))


def test_of_fewer_than_four_people_all_of_the_others_are_enough():
    assert [vqa_soft("red", ["red"] * n) for n in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert vqa_soft("red", ["red", "blue"]) == 0.5
    assert vqa_soft("red", ["red", "red", "blue"]) == pytest.approx(2 / 3)
    assert vqa_soft("red", ["red", "blue", "green"]) == pytest.approx(1 / 3)
    assert vqa_soft("red", ["blue"]) == vqa_soft("red", []) == 0.0


def test_signs_are_told_apart():
    assert exact("<", ">") == 0.0
    assert exact("< ", "<") == 1.0
