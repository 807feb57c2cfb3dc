"""Held-out questions in other words: the same questions, each with its label, read by a student of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.competed import configured
from bench.other_words import ENDED, in_other_words, score
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.requests import Sampling
from tests.synthesis.fault_proxy import FaultProxy


@pytest.fixture
def items(tmp_path) -> list[Item]:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
    asked = ("is there a red circle?", "is there a blue circle?", "how many circles are there?")
    return [Item(f"{n}", text, (str(tmp_path / "one.png"),), reference=f"{n}") for n, text in enumerate(asked)]


def rewriter(url: str) -> ModelSection:
    return ModelSection.model_validate({"endpoint": {"url": url, "model": "writer"}})


def test_what_may_ask_something_else_is_left_out(items, tmp_path):
    def said(body) -> str:
        asked = body["messages"][-1]["content"]
        return "Do you see a red circle?" if "red" in asked else "Do you see a green circle?"

    with FaultProxy(None, content=said) as proxy:
        told = in_other_words(items, rewriter(proxy.url), tmp_path / "words")
    assert [(one.id, one.template, one.question) for one in told] == [
        ("0", "is there a red circle?", "Do you see a red circle?")
    ]
    assert told[0].reference == "0"


def test_a_score_is_the_mean_over_labels(items, tiny_student, tmp_path):
    config = configured(Path("runs/c"), "reworded", 0, ENDED)
    student = ModelSection.model_validate({"vlm": {"model": tiny_student, "tokens": "full"}})
    config = config.model_copy(update={"student": config.student.model_copy(update={"tokens": "full"})})
    sampling, log = Sampling(**config.sampling.model_dump()), RejectedLog(tmp_path / "log.jsonl")
    said = answered(student, tmp_path / "asked", items, sampling, log, 0, "student", True, True)
    answers = [one.answer for one in said]
    labelled = [replace(items[0], reference=answers[0]), *items[1:]]
    right = 1 + sum(answer == item.reference for answer, item in zip(answers[1:], items[1:]))
    assert score(config, Path(tiny_student), labelled, tmp_path / "words") == pytest.approx((9 * right + 3) / 3)
