"""Records in files: our own JSONL and Parquet, and LLaVA's JSON. Rows are read when asked for."""

from __future__ import annotations

import base64
import glob
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmkd.data.grouping import grouped
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError, DataError

RECORD_FIELDS = {field.name for field in fields(Record)}
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def jsonl(path: str, turns: int | None = None, seed: int = 0) -> Sequence[Record]:
    """Our own records, one JSON object a line.

    Args:
        path: of the file; image paths in it are relative to its folder, `data:` URIs carry the image itself.
        turns: most questions of a record, where consecutive lines ask about one image; seed: of their order.
    """
    return grouped(JsonLines(existing(path)), turns, seed)


def parquet(path: str, turns: int | None = None, seed: int = 0) -> Sequence[Record]:
    """Our own records in Parquet: columns as in `Record`, images as paths relative to the file or as bytes."""
    return grouped(ParquetRows(existing(path)), turns, seed)


def llava_json(path: str, images: str | None = None, turns: int | None = None, seed: int = 0) -> Sequence[Record]:
    """LLaVA's format: a list of {id, image, conversations: [{from: human | gpt, value}]}; `answers` and `choices`
    beside a value as in `Turn`.

    Args:
        images: folder of the images; the file's own by default.

    Raises: DataError where the file is no JSON list.
    """
    file = existing(path)
    try:
        rows = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}); llava_json takes one JSON list.") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} holds a {type(rows).__name__}; llava_json takes a list of records.")
    return grouped(LlavaRows(rows, file, Path(images) if images else file.parent), turns, seed)


class JsonLines(Sequence[Record]):
    """The lines of a JSONL file by number; only their places are held in memory.

    Args:
        read: makes a record of the object of a line, its place in words, and the file's folder.
    """

    def __init__(self, file: Path, read: Callable[[Any, str, Path], Record] | None = None):
        self.file, self.read = file, read or record_of
        self.starts, self.lines = array("q"), array("q")  # byte where a line starts, its number in the file
        place = 0
        with file.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    self.starts.append(place)
                    self.lines.append(number)
                place += len(line)
        self.size = place

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Record:
        start = self.starts[index]
        end = self.starts[index + 1] if index + 1 < len(self.starts) else self.size
        with self.file.open("rb") as handle:
            handle.seek(start)
            text = handle.read(end - start)
        place = f"{self.file}, line {self.lines[index]}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{place}: not JSON ({error}).") from error
        return self.read(row, place, self.file.parent)


class ParquetRows(Sequence[Record]):
    """The rows of a Parquet file, through a memory-mapped Arrow copy that `datasets` keeps in its cache."""

    def __init__(self, file: Path):
        datasets = import_datasets("parquet")
        self.file = file
        try:
            self.rows = datasets.load_dataset("parquet", data_files=glob.escape(str(file)), split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({error}).") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return record_of(self.rows[index], f"{self.file}, row {index}", self.file.parent)


class LlavaRows(Sequence[Record]):
    def __init__(self, rows: list[Any], file: Path, folder: Path):
        self.rows, self.file, self.folder = rows, file, folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row, place = self.rows[index], f"{self.file}, row {index}"
        try:
            said = [turn["value"] for turn in row["conversations"]]
            turns = [
                turn_of(turn, LLAVA_ROLES[turn["from"]], text.replace("<image>", "").strip(), place)
                for turn, text in zip(row["conversations"], said, strict=True)
            ]
            named = row.get("image") or []
            images = [str(self.folder / name) for name in ([named] if isinstance(named, str) else named)]
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRow(f"{place}: not of LLaVA's shape ({error!r}).") from error
        marked = sum(text.count("<image>") for text in said)
        if marked != len(images):
            raise BadRow(f"{place}: {marked} <image> marks, {len(images)} images; they must agree.", "image marks")
        return Record(id=str(row.get("id", index)), turns=turns, images=images, source=self.file.stem)


def record_of(row: Any, place: str, folder: Path) -> Record:
    """A Record of a JSON object or Parquet row. Raises BadRow naming `place` where it is none."""
    if not isinstance(row, Mapping):
        raise BadRow(f"{place}: a {type(row).__name__}, not an object with id, turns and images.")
    unknown = sorted(set(row) - RECORD_FIELDS)
    if unknown:
        raise BadRow(f"{place}: unknown fields {', '.join(unknown)}; a record has {', '.join(sorted(RECORD_FIELDS))}.")
    try:
        return Record(
            id=str(row["id"]),
            turns=[turn_of(turn, turn["role"], turn["text"], place) for turn in row["turns"]],
            images=images_of(row, place, folder),
            task=row.get("task") or "",
            source=row.get("source") or "",
            provenance=Provenance(**(row.get("provenance") or {})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRow(f"{place}: not a record ({error!r}); it needs id and turns of role and text.") from error


def turn_of(row: Mapping[str, Any], role: Any, text: str, place: str) -> Turn:
    """A turn with the optional fields of `row`. A blank rationale is none.

    Raises: BadRow where a rationale is no text, or answers or choices are no list of texts.
    """
    answers, choices = row.get("answers") or None, row.get("choices") or None
    for name, texts in (("answers", answers), ("choices", choices)):
        if texts is not None and not (isinstance(texts, list) and all(isinstance(one, str) for one in texts)):
            raise BadRow(f"{place}: {name} of a turn is {str(texts)[:80]!r}; allowed: a list of texts.")
    rationale = row.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise BadRow(f"{place}: the rationale of a turn is {str(rationale)[:80]!r}; allowed: a text.")
    shown = rationale if rationale and rationale.strip() else None
    return Turn(role, text, shown, row.get("rejected"), answers, choices)


def images_of(row: Mapping[str, Any], place: str, folder: Path) -> list[str | bytes]:
    """The images of a row. Raises BadRow where they are no list of paths, data: URIs or bytes."""
    images = row.get("images")
    images = [] if images is None else images
    if not isinstance(images, list):
        raise BadRow(f"{place}: images is a {type(images).__name__}; allowed: a list of paths, data: URIs, or bytes.")
    return [_image_of(image, place, folder) for image in images]


def _image_of(image: Any, place: str, folder: Path) -> str | bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise BadRow(f"{place}: an image is a {type(image).__name__}; allowed: a path, a data: URI, or bytes.")
    if not image.startswith("data:"):
        return str(folder / image)
    try:
        return base64.b64decode(image.partition("base64,")[2], validate=True)
    except ValueError as error:  # binascii.Error, or letters that are not ASCII
        raise BadRow(f"{place}: a data: URI that is no base64 ({error}).") from error


def existing(path: str) -> Path:
    file = Path(path)
    if not file.is_file() or not os.access(file, os.R_OK):
        raise DataError(f"{path}: no such file, or it cannot be read. Name the file itself, relative to where you run.")
    return file


def import_datasets(source: str) -> Any:
    """The `datasets` library; raises ConfigError with the line that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data source {source} needs the datasets library: pip install 'mmkd[data]'.") from error
    return datasets
