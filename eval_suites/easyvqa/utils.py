"""EasyVQA's test questions for lmms-eval. recipe.jsonl says where they come from; `questions` unfolds it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from datasets import Dataset
from PIL import Image

from mmkd import assets
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.evaluate.matching import exact


def questions(recipe: Dataset) -> Dataset:
    rows = []
    for source in recipe:
        folder = assets.path(source["asset"]) / source["split"]
        for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
            image = str(folder / "images" / f"{number}.png")
            rows.append({"question": question, "answer": answer, "file": image, "type": _type(answer)})
    return Dataset.from_list(rows)


def _type(answer: str) -> str:
    return "shape" if answer in SHAPES else "color" if answer in COLORS else "yes_no"


def image(doc: dict[str, Any]) -> list[Image.Image]:
    return [_opened(doc["file"])]


@lru_cache(maxsize=2048)
def _opened(file: str) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    right = exact(results[0], doc["answer"])
    return {"acc": right, f"acc_{doc['type']}": right}
