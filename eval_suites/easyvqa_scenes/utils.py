"""Scene questions for lmms-eval. recipe.jsonl names the scenes; `questions` makes them, `image` draws one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from datasets import Dataset
from PIL import Image

from mmkd.data.scenes import scene
from mmkd.evaluate.matching import exact


def questions(recipe: Dataset) -> Dataset:
    rows = []
    for source in recipe:
        place = {"split": source["split"], "seed": source["seed"], "grid": source["grid"]}
        for index in range(source["scenes"]):
            for question in scene(index=index, questions=source["questions"], **place).questions:
                said = {"question": question.text, "answer": question.answer}
                rows.append({**said, "type": question.type, "unseen": question.unseen, "index": index, **place})
    return Dataset.from_list(rows)


def image(doc: dict[str, Any]) -> list[Image.Image]:
    return [_drawn(doc["split"], doc["index"], doc["seed"], doc["grid"])]


@lru_cache(maxsize=1024)
def _drawn(split: str, index: int, seed: int, grid: int) -> Image.Image:
    return scene(split, index, seed, grid, questions=1).image()  # the picture does not depend on the questions


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    right = exact(results[0], doc["answer"])
    return {"acc": right, f"acc_{doc['type']}": right, "acc_unseen" if doc["unseen"] else "acc_seen": right}
