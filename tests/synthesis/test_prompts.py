"""Packaged prompts: their versions, and what they look like with values in them."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from mmkd.errors import ConfigError
from mmkd.synthesis.judging.judge import Item, Judge
from mmkd.synthesis.prompts import FOLDER, prompt

# A text that changes gets a new version, and its line here: answers are kept under both.
VERSIONS = {
    "ask_again": (1, "1cd4f327"),
    "compete_augment": (1, "2a14f21d"),
    "compete_grounding": (1, "5f499d42"),
    "compete_presence": (1, "e8e80917"),
    "compete_refine": (1, "d8bb4df4"),
    "evolve": (3, "4afb1a1d"),
    "evolve_blind": (1, "a6ec523e"),
    "evolve_judge": (2, "06b1b119"),
    "json_answer": (1, "7cb750d3"),
    "judge_grade": (1, "c0e3a43f"),
    "judge_one": (1, "f11bf77c"),
    "judge_pair": (1, "d03795bc"),
    "judge_words": (1, "7f266243"),
    "propose_question": (1, "025333e5"),
    "reword": (2, "f7c47783"),
    "tell_trace": (1, "936151c3"),
    "tool_query": (2, "1bb26dcc"),
    "write_program": (1, "618965d1"),
}
VALUES = {"question": "Which color?", "reference": None, "rubric": ["1: bad", "2: good"], "low": 1, "high": 2}


def test_every_prompt_is_listed_with_its_version_and_hash():
    found = {file.stem: (prompt(file.stem).version, prompt(file.stem).sha[:8]) for file in FOLDER.glob("*.jinja")}
    assert found == VERSIONS


def test_a_pair_is_shown_whole():
    system, user = prompt("judge_pair").render(**VALUES, first="red {{ 7 * 7 }}", second="a\nb")
    mark = user.text.split("--- ")[1].split("\n")[0]
    assert (system.role, user.role) == ("system", "user")
    assert f"Text between the {mark} lines" in system.text
    assert user.text == (
        f"Question:\n--- {mark}\nWhich color?\n--- {mark}\n"
        f"First answer:\n--- {mark}\nred {{{{ 7 * 7 }}}}\n--- {mark}\n"
        f"Second answer:\n--- {mark}\na\nb\n--- {mark}\n"
        "Give each answer a whole number from 1 to 2:\n- 1: bad\n- 2: good\n"
        'Reply as JSON: "reason", at most three sentences on what in the image supports or contradicts each answer; '
        'then "first" and "second", their scores.'
    )


def test_a_reference_is_shown_where_there_is_one():
    _, without = prompt("judge_one").render(**VALUES, answer="red")
    _, shown = prompt("judge_one").render(**{**VALUES, "reference": "blue"}, answer="red")
    assert "known to be right" not in without.text
    assert "known to be right" in shown.text
    assert "blue" in shown.text


def test_nobody_who_writes_an_answer_can_know_the_mark():
    """It hangs on all values, the answer included."""
    texts = [prompt("judge_one").render(**VALUES, answer=answer)[1].text for answer in ("red", "red ")]
    marks = [text.split("--- ")[1][:8] for text in texts]
    assert marks[0] != marks[1]


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'answer' is undefined"):
        prompt("judge_one").render(**VALUES)
    with pytest.raises(ConfigError, match=r"there is no prompt judge_two; there are .*judge_one"):
        prompt("judge_two")


def test_the_other_order_swaps_the_answers_and_nothing_else():
    judge = Judge.__new__(Judge)
    Judge.__init__(judge, asker=None)  # pyright: ignore[reportArgumentType]  rendering asks nobody
    straight, turned = (judge.request(Item("i", "Which?", ("red", "blue")), order) for order in (0, 1))

    def unmarked(text: str) -> str:
        return text.replace(text.split("--- ")[1][:8], "M")

    one, other = unmarked(straight.turns[1].text), unmarked(turned.turns[1].text)
    assert one.replace("red", "X").replace("blue", "red").replace("X", "blue") == other
    assert straight.prompt == turned.prompt == str(prompt("judge_pair"))
