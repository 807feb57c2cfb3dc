"""From the config's sources to items, with every picture in a file; and the proof that held-out pictures stay out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mmkd.config.schema import SourceSection
from mmkd.data.images import open_image
from mmkd.data.on_disk import Made, Spool
from mmkd.data.records import Record
from mmkd.data.rejected import RejectedLog
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.rows import open_rows, usable
from mmkd.whole_files import write_whole

Pixels = dict[str, str]  # hash of a picture's pixels -> name of a record that shows it


def items_of(
    sections: Sequence[SourceSection], name: str, images: Path, log: RejectedLog, labels: bool, independent: bool
) -> tuple[Sequence[Item], Pixels]:
    """The questions of all rows that can be used and have pictures, and these. Items are read from disk when asked for.

    Args:
        name: pool or held_out; its first letter begins the items' ids.
        images: folder for pictures that records hold inside; those in files stay where they are.
        labels, independent: see CompeteConfig.

    Raises: ConfigError, DataError as `open_rows` and `usable` do.
    """
    records, items, pixels, known = open_rows(sections), Spool(), Pixels(), set[str]()
    for index in usable(records, log, name, with_pictures=True):
        record = records[index]
        for image in record.images:
            if (key := _key(image)) not in known:
                known.add(key)
                pixels.setdefault(pixel_hash(image), f"{record.source or name}/{record.id}")
        files = tuple(_file(image, images) for image in record.images)
        for number, (question, answer) in enumerate(asked(record)):
            if number == 0 or independent:
                item = Item(
                    f"{name[0]}{index}.{number}",
                    question,
                    files,
                    record.task,
                    answer if labels else None,
                    parent=record.id,
                    license=record.provenance.license,
                )
                items.append(asdict(item))

    def item_of(number: int) -> Item:
        row = items.get(number)
        return Item(**row | {"images": tuple(row["images"])})

    return Made(range(len(items)), item_of), pixels


def pixels_of(sections: Sequence[SourceSection], log: RejectedLog) -> Pixels:
    """The pictures alone."""
    records, pixels, known = open_rows(sections), Pixels(), set[str]()
    for index in usable(records, log, "pretraining"):
        record = records[index]
        for image in record.images:
            if (key := _key(image)) not in known:
                known.add(key)
                pixels.setdefault(pixel_hash(image), f"{record.source}/{record.id}")
    return pixels


def require_apart(held_out: Pixels, trained: Pixels, what: str) -> None:
    """Raises ConfigError naming records of both sides that show one picture."""
    both = sorted(held_out.keys() & trained.keys())
    if both:
        pairs = ", ".join(f"{held_out[name]} = {trained[name]}" for name in both[:3])
        raise ConfigError(
            f"held_out and {what} share {len(both):,} pictures ({pairs}{', ..' if len(both) > 3 else ''}): a score on "
            "pictures that were trained on says nothing. Take them out of one of both."
        )


def pixel_hash(image: str | bytes) -> str:
    """SHA-256 of a picture's size and RGB values, whatever file format holds them. Raises DataError."""
    opened = open_image(image)
    return hashlib.sha256(f"{opened.size}".encode() + opened.tobytes()).hexdigest()


def asked(record: Record) -> Iterator[tuple[str, str | None]]:
    """Each question with the answer that stands behind it, if one does."""
    for place, turn in enumerate(record.turns):
        if turn.role == "user":
            behind = record.turns[place + 1] if place + 1 < len(record.turns) else None
            yield turn.text, behind.text if behind is not None and behind.role == "assistant" else None


def _key(image: str | bytes) -> str:
    """Short, so that no picture is held in memory for having been seen."""
    return image if isinstance(image, str) else hashlib.sha256(image).hexdigest()


def _file(image: str | bytes, folder: Path) -> str:
    """A path of the picture; one inside a record is written under the hash of its bytes."""
    if isinstance(image, str):
        return image
    name = folder / _key(image)
    if not name.exists():
        write_whole(name, [image])
    return str(name)
