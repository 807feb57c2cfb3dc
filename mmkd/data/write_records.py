"""Records as a JSONL file that the source `jsonl` reads."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmkd.data.records import Record
from mmkd.whole_files import write_whole


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write records, whole or not at all: the file appears when its last line is written.

    Image paths become relative to the file; images inside records stay inside, as data: URIs. Half of a surrogate pair
    is written as JSON escapes it.

    Returns: how many. Raises: DataError where the disk takes no more.
    """

    def lines() -> Iterator[bytes]:
        for record in records:
            row = record.to_dict()
            row["images"] = [_image(image, path.parent) for image in record.images]
            yield (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")

    return write_whole(path, lines())


def relative_to(folder: Path, image: str | Path) -> str:
    """The path of an image as a file in `folder` says it.

    Links to folders are followed first: where `folder` is behind one, `..` from it leads to another place than its name
    tells. An image that is a link itself keeps its name.
    """
    place, name = os.path.split(image)
    return os.path.relpath(os.path.join(os.path.realpath(place), name), os.path.realpath(folder))


def _image(image: str | bytes, folder: Path) -> str:
    if isinstance(image, bytes):
        return "data:application/octet-stream;base64," + base64.b64encode(image).decode()
    return relative_to(folder, image)
