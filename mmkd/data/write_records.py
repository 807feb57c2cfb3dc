"""Records as a JSONL file that the source `jsonl` reads."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path

from mmkd.data.records import Record


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write records, whole or not at all: the file appears when its last line is written.

    Image paths become relative to the file; images inside records stay inside, as data: URIs.

    Returns: how many.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(f".{path.name}.partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            row = record.to_dict()
            row["images"] = [_image(image, path.parent) for image in record.images]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Write text, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
    os.replace(partial, path)


def _image(image: str | bytes, folder: Path) -> str:
    if isinstance(image, bytes):
        return "data:application/octet-stream;base64," + base64.b64encode(image).decode()
    return os.path.relpath(image, folder)
