"""Where records come from. A source is a sequence of records, read by index so that a resumed run skips nothing twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmkd import assets
from mmkd.config.load import check_options
from mmkd.config.schema import SourceSection
from mmkd.data import scenes
from mmkd.data.records import Provenance, Record, Turn
from mmkd.errors import ConfigError, DataError

_SOURCES: dict[str, Callable[..., Sequence[Record]]] = {}
_COLORS = {"red", "green", "blue", "gray", "teal", "black", "yellow", "brown"}


def register(name: str) -> Callable[[Callable[..., Sequence[Record]]], Callable[..., Sequence[Record]]]:
    def add(function: Callable[..., Sequence[Record]]) -> Callable[..., Sequence[Record]]:
        _SOURCES[name] = function
        return function

    return add


def open_source(section: SourceSection) -> Sequence[Record]:
    """The records of one entry of `data.mixture`. Raises ConfigError for an unknown source or option."""
    if section.source not in _SOURCES:
        raise ConfigError(f"data source {section.source!r} is not one of {', '.join(sorted(_SOURCES))}.")
    function = _SOURCES[section.source]
    check_options(section.source, section.options(), function)
    records = function(**section.options())
    if not len(records):
        raise DataError(f"data source {section.source} ({section.options()}) has no records.")
    return records


@register("easyvqa")
def easyvqa(split: str = "train", turns: int = 10, seed: int = 0) -> list[Record]:
    """EasyVQA: one coloured shape an image. Questions on one image become the turns of one record, in seeded order.

    Args:
        split: train or test.
        turns: most questions of a record.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"easyvqa has the splits train and test, not {split!r}.")
    folder = assets.path("easyvqa") / split
    by_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((folder / "questions.json").read_text()):
        by_image.setdefault(image, []).append((question, answer))
    records = []
    for image, questions in by_image.items():
        random.Random(f"{seed}/{image}").shuffle(questions)
        for start in range(0, len(questions), turns):
            part = questions[start : start + turns]
            records.append(
                Record(
                    id=f"{split}/{image}/{start}",
                    turns=[t for q, a in part for t in (Turn("user", q), Turn("assistant", a))],
                    images=[str(folder / "images" / f"{image}.png")],
                    task=_easyvqa_task(part[0][1]) if len(part) == 1 else "mixed",
                    source="easyvqa",
                    provenance=Provenance(license="MIT"),
                )
            )
    return records


def _easyvqa_task(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "color" if answer in _COLORS else "shape"


@register("scenes")
def easyvqa_scenes(split: str = "train", count: int = 4000, seed: int = 0, grid: int = 3) -> list[Record]:
    """Scenes of EasyVQA images with questions true by construction; see `mmkd.data.scenes`."""
    return scenes.records(split, count, seed, grid)


@register("jsonl")
def jsonl(path: str) -> list[Record]:
    """Our own records, one JSON object a line; image paths are relative to the file.

    Raises: DataError naming file and line for a line that is no record.
    """
    file = Path(path)
    records = []
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            turns = [Turn(**turn) for turn in row.pop("turns")]
            images = [str(file.parent / image) for image in row.pop("images", [])]
            provenance = Provenance(**row.pop("provenance", {}))
            records.append(Record(turns=turns, images=images, provenance=provenance, **row))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number}: not a record ({error!r}).") from error
    return records


@register("llava_json")
def llava_json(path: str, images: str | None = None) -> list[Record]:
    """LLaVA's format: a list of {id, image, conversations: [{from: human|gpt, value}]}.

    Args:
        images: folder of the images; the file's own by default.

    Raises: DataError naming file and row for a row of another shape.
    """
    file = Path(path)
    folder = Path(images) if images else file.parent
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).") from error
    return [_llava_record(row, number, file, folder) for number, row in enumerate(rows)]


def _llava_record(row: Any, number: int, file: Path, folder: Path) -> Record:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    try:
        turns = [Turn(roles[t["from"]], t["value"].replace("<image>", "").strip()) for t in row["conversations"]]
        named = row.get("image") or []
        paths = [str(folder / name) for name in ([named] if isinstance(named, str) else named)]
        return Record(id=str(row.get("id", number)), turns=turns, images=paths, source=file.stem)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}, row {number}: not of LLaVA's shape ({error!r}).") from error
