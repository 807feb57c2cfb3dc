"""Where records come from.

A source is a sequence of records, read by index, so that a resumed run starts at its place without reading what came
before. What it holds depends on its own options alone; the run's seed only orders it (see `mmkd.data.mixture`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mmkd import assets
from mmkd.config.load import check_options
from mmkd.config.problems import near
from mmkd.config.schema import Config, SourceSection
from mmkd.data import scenes
from mmkd.data.grouping import grouped
from mmkd.data.hub import Stream, hub
from mmkd.data.preferences import preferences
from mmkd.data.record_files import jsonl, llava_json, parquet
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.scene_questions import COLORS
from mmkd.errors import ConfigError, DataError

Source = Sequence[Record] | Stream

_SOURCES: dict[str, Callable[..., Source]] = {}


def register(name: str) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Makes a function the source `name`; its keyword arguments are the source's options."""

    def add(function: Callable[..., Source]) -> Callable[..., Source]:
        _SOURCES[name] = function
        return function

    return add


def open_source(section: SourceSection, *, at: str = "", config: Config | None = None) -> Source:
    """The records of one entry of `data.mixture`.

    Args:
        at: key path of the section, e.g. `data.mixture[0]`; config: the loaded config. Both only for messages.

    Raises: ConfigError for an unknown source or option, DataError where there is nothing to read.
    """
    function, options = check_source(section, at=at, config=config)
    records = function(**options)
    if not isinstance(records, Stream) and not len(records):
        raise DataError(f"data source {section.source} ({section.options()}) has no records.")
    return records


def check_source(
    section: SourceSection, *, at: str = "", config: Config | None = None
) -> tuple[Callable[..., Source], dict[str, Any]]:
    """What opens a source, and its options; nothing is read. Raises ConfigError for an unknown source or option."""
    if section.source not in _SOURCES:
        key = f"{at}.source" if at else "source"
        raise ConfigError(
            f"config: {key} is {section.source!r}; allowed: {', '.join(sorted(_SOURCES))}."
            f"{near(section.source, _SOURCES)}"
        )
    function = _SOURCES[section.source]
    return function, check_options(section.source, section.options(), function, at=at, config=config)


register("jsonl")(jsonl)
register("parquet")(parquet)
register("llava_json")(llava_json)
register("preferences")(preferences)
register("datasets")(hub)


@register("easyvqa")
def easyvqa(split: str = "train", turns: int | None = 10, seed: int = 0) -> Sequence[Record]:
    """EasyVQA: one coloured shape an image, eight to ten questions each.

    Args:
        split: train or test.
        turns: most questions of a record; None for a record a question. seed: of their order.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"easyvqa has the splits train and test, not {split!r}.")
    folder = assets.path("easyvqa") / split
    records = []
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    rows.sort(key=lambda row: row[2])  # questions on one image next to each other; the sort is stable
    for number, (question, answer, image) in enumerate(rows):
        records.append(
            Record(
                id=f"{split}/{image}/{number}",
                turns=[Turn("user", question), Turn("assistant", answer)],
                images=[str(folder / "images" / f"{image}.png")],
                task=_easyvqa_task(answer),
                source="easyvqa",
                provenance=Provenance(license="MIT"),
            )
        )
    return grouped(records, turns, seed)


def _easyvqa_task(answer: str) -> str:
    if re.fullmatch("yes|no", answer):
        return "yes/no"
    return "color" if answer in COLORS else "shape"


@register("scenes")
def easyvqa_scenes(
    split: str = "train",
    count: int = 4000,
    seed: int = 0,
    grid: int = 3,
    described: bool = False,
    single: bool = False,
    types: list[str] | None = None,
    questions: int = 10,
) -> Sequence[Record]:
    """Scenes of EasyVQA images with questions, or descriptions, true by construction; see `mmkd.data.scenes`."""
    return scenes.records(split, count, seed, grid, questions, described=described, single=single, types=types)
