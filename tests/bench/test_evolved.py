"""Cases of evolved questions differ in the questions alone: images, rows and tokens are the same."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.equal_tokens import by_question, filled
from mmkd.data.records import Turn
from mmkd.synthesis.evolving.items import OPEN, Content


def content(text: str) -> Content:
    return Content(objects=[], skills=[], steps=[], form=OPEN, question=text, answer="yes")


def words(contents) -> int:
    return sum(len(one.question.split()) for one in contents)


@pytest.fixture
def cases() -> dict[str, list[list[Content]]]:
    """Four short questions about each of 25 images; and those with up to four longer ones."""
    seeds = [[content(f"is {image} {number} so") for number in range(4)] for image in range(25)]
    grown = [
        [*asked, *(content(f"{'and then ' * (2 + number)} {image}") for number in range(image % 5))]
        for image, asked in enumerate(seeds)
    ]
    return {"seed": seeds, "evolved": grown}


def test_every_case_shows_the_same_images_and_as_many_tokens(cases):
    made = {name: list(filled(questions, 200, 12.8, words, 3)) for name, questions in cases.items()}
    order = [image for image, _ in made["seed"]]
    assert [image for image, _ in made["evolved"]] == order
    assert all(sorted(order[start : start + 25]) == list(range(25)) for start in range(0, 200, 25))
    assert order[:25] != order[25:50]
    for rows in made.values():
        assert sum(words(asked) for _, asked in rows) == pytest.approx(200 * 12.8, abs=12)
        assert all(asked and len(set(map(id, asked))) == len(asked) for _, asked in rows)


def test_all_questions_of_an_image_come_before_one_comes_again(cases):
    seen: Counter[str] = Counter()
    for image, asked in filled(cases["seed"], 200, 12.8, words, 3):
        for one in asked:
            seen[one.question] += 1
        counts = [seen[one.question] for one in cases["seed"][image]]
        assert max(counts) - min(counts) <= 1
    assert min(seen.values()) >= 5


def test_a_row_is_counted_from_its_questions_each_of_which_is_read_once():
    calls = []

    def count(asked) -> int:
        calls.append(len(asked))
        return 5 + sum(2 + len(turn.text.split()) for pair in asked for turn in pair)

    pairs = [(Turn("user", "is it " * number), Turn("assistant", "yes")) for number in range(1, 7)]
    fast = by_question(count)
    for asked in ([], pairs[:1], pairs[:3], pairs, pairs[3:], pairs[::2]):
        assert fast(asked) == 5 + sum(2 + len(turn.text.split()) for pair in asked for turn in pair)
    assert sorted(calls) == [0, *[1] * len(pairs), 2]
