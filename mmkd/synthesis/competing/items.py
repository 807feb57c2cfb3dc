"""An item: one question about a picture, with the teacher's answer. Pools are files of them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmkd.data.on_disk import Made
from mmkd.data.record_files import JsonLines
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import relative_to
from mmkd.synthesis.answering import both
from mmkd.synthesis.requests import Request, Sampling, digest
from mmkd.whole_files import write_whole

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        images: paths of image files.
        reference: an answer known to be right, where there is one.
        round: that it joined the pool in; 0 for what was given.
        parent: record or item that it was made from; engine: what made it, empty for what was given.
        answer: the teacher's; model: the teacher's identity. Empty before it was asked.
        template: the question in a template's words, where a model was asked for others; said: in the model's, taken or
            not; writer: that model. The question is one of both.
        license: of the question, as SPDX id or expression; answer_license: of the teacher's words.
    """

    id: str
    question: str
    images: tuple[str, ...]
    task: str = ""
    reference: str | None = None
    round: int = 0
    parent: str = ""
    engine: str = ""
    prompt: str = ""
    license: str | None = None
    answer: str = ""
    model: str = ""
    answer_license: str | None = None
    template: str = ""
    said: str = ""
    writer: str = ""

    @property
    def plain_question(self) -> str:
        """As templates ask it, where one does."""
        return self.template or self.question

    def request(self, sampling: Sampling) -> Request:
        return Request(self.id, (Turn("user", self.question),), self.images, sampling, license=self.license)

    def record(self, seed: int) -> Record:
        """What the student learns from."""
        turns = [Turn("user", self.question), Turn("assistant", self.answer)]
        provenance = Provenance(
            parent=self.parent,
            engine=f"compete/{self.engine}" if self.engine else "compete",
            round=self.round,
            model=self.model,
            prompt_hash=digest([self.question]),
            seed=seed,
            license=both(self.license, self.answer_license),
            template=self.template or None,
            said=self.said or None,
        )
        return Record(self.id, turns, list(self.images), self.task, "compete", provenance)


def write_items(path: Path, items: Iterable[Item]) -> int:
    """A JSONL file, whole or not at all, image paths relative to it. Returns how many."""

    def row(item: Item) -> dict[str, Any]:
        return asdict(item) | {"images": [relative_to(path.parent, image) for image in item.images]}

    return write_rows(path, map(row, items))


def read_items(path: Path) -> list[Item]:
    return list(open_items(path))


def open_items(path: Path) -> Sequence[Item]:
    """As `read_items`, each read when it is asked for."""

    def item(row: dict[str, Any], _: str, folder: Path) -> Item:
        return Item(**row | {"images": tuple(str(folder / image) for image in row["images"])})

    return open_rows(path, item)


def open_rows(path: Path, read: Callable[[dict[str, Any], str, Path], T]) -> Sequence[T]:
    """What `read` makes of each line of a JSONL file, its place in words and its folder, when it is asked for."""
    lines: Any = JsonLines(path, read)  # pyright: ignore[reportArgumentType]: not of records only
    return lines


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """JSON objects, one a line; the file appears when its last line is written. Returns how many."""
    return write_whole(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_rows`, one after the other."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def by_image(items: Sequence[Item], numbers: Iterable[int]) -> Sequence[Item]:
    """The items of these numbers, those of one picture next to each other, so that a row may hold several questions
    about it."""
    places: dict[Sequence[str], int] = {}
    pairs = [(places.setdefault(items[number].images, len(places)), number) for number in numbers]
    return Made(array("q", (number for _, number in sorted(pairs))), items.__getitem__)
