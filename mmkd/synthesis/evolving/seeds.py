"""Questions of records as the seeds that evolve, and what is known of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from mmkd.data.images import read_image
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.errors import DataError
from mmkd.synthesis.evolving.items import OPEN, Box, Content, Name, draw
from mmkd.synthesis.evolving.outcomes import Rejection


@dataclass(frozen=True)
class Seed:
    """One question of a record.

    Attributes:
        item: its name, `record id#place of the question`; two records of one id are told apart by `index`.
        image: SHA-256 of the record's image.
    """

    item: str
    index: int
    image: str
    content: Content


def seeds_of(index: int, record: Record, most: int | None, seed: int) -> Iterator[Seed | tuple[str, Rejection]]:
    """The record's questions, at most `most` of them, drawn; (name, why not) of a question that cannot evolve.

    Raises: BadRow for a record without exactly one image, or without questions.
    """
    if len(record.images) != 1:
        raise BadRow(f"it has {len(record.images)} images; a question that evolves is about one.", "not one image")
    pairs = [
        (place, turn.text, record.turns[place + 1].text)
        for place, turn in enumerate(record.turns[:-1])
        if turn.role == "user" and record.turns[place + 1].role == "assistant"
    ]
    if not pairs:
        raise BadRow("it has no question with an answer.", "no question")
    if most is not None and len(pairs) > most:
        pairs = sorted(draw(seed, "seeds", index, record.id).sample(pairs, most))
    image = hashlib.sha256(read_image(record.images[0])).hexdigest()
    for place, question, answer in pairs:
        name = f"{index}:{record.id}#{place}"
        try:
            content = Content(objects=[], skills=[], steps=[], form=OPEN, question=question, answer=answer)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            yield name, Rejection("no seed", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            continue
        yield Seed(name, index, image, content)


class Known(BaseModel):
    """A line of the annotations file."""

    id: str = Field(coerce_numbers_to_str=True)  # as of records
    caption: str = ""
    objects: list[Known.Found] | None = None

    class Found(BaseModel):
        label: Name
        box: Box


LINE = '{"id": .., "caption": .., "objects": [{"label": .., "box": [left, top, right, bottom]}]}, sides from 0 to 1'


class Annotations:
    """What a file of annotations knows of records, by id: each line is checked once, and read when asked for. Memory
    holds places. Lines that cannot be read are written to the log.

    Raises: DataError where there is no such file, once `too_many` lines were bad, or where all are.
    """

    def __init__(self, path: str | None, log: RejectedLog):
        self._places: dict[str, int] = {}
        if path is None:
            return
        self._path = Path(path)
        if not self._path.is_file():
            raise DataError(f"annotations: there is no file {path}.")
        place = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        self._places[Known.model_validate_json(line).id] = place
                        log.good()
                    except ValidationError as error:
                        log.reject("annotations", number, "", _bad_line(f"{path}:{number}", error))
                place += len(line)
        if log.bad and not self._places:
            raise DataError(f"no line of {path} is an annotation; the reasons are in {log.path}. {log.remedy}")

    def of(self, record: str) -> Known:
        """Of a record without a line, nothing is known."""
        if record not in self._places:
            return Known(id=record)
        with self._path.open("rb") as lines:
            lines.seek(self._places[record])
            return Known.model_validate_json(lines.readline())


def _bad_line(where: str, error: ValidationError) -> BadRow:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "the line"
    return BadRow(f"{where}: {field}: {first['msg']}; found {first['input']!r:.80}. A line is {LINE}.", "no annotation")


def check_unchanged(image: str, record: Sequence[str | bytes], item: str, out: Path) -> None:
    """Raises DataError where a record's image is another one than when its seeds were taken."""
    if hashlib.sha256(read_image(record[0])).hexdigest() != image:
        raise DataError(f"{item}: its image changed since {out} was begun. Take the old data, or another folder.")
