"""Rows that were edited after a store was filled from them. A store keeps a digest of each row, of its text and of its
images, so that they are known again without being read by a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmkd.config.schema import SourceSection
from mmkd.data.feature_store import image_key
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow
from mmkd.data.sources import Source, open_source
from mmkd.errors import ConfigError, DataError
from mmkd.teachers.identity import Manifest
from mmkd.teachers.logit_store import ROW_BYTES, missing_shards, rows_of_shard, shard_path, shards_of

HALF = ROW_BYTES // 2  # of a row's digest: first its text, then its images
UNREAD = bytes(HALF)  # in the place of what cannot be read


def text_digest(record: Record) -> bytes:
    """Of all that a sample's text may be made of, and of how many images there are."""
    said = [[turn.role, turn.text, turn.rationale, turn.rejected] for turn in record.turns]
    return hashlib.sha256(json.dumps([len(record.images), said], default=str).encode()).digest()[:HALF]


def row_digest(record: Record | None) -> bytes:
    """Of a row's text and of its encoded images, [ROW_BYTES]; None is a row that cannot be read."""
    if record is None:
        return UNREAD + UNREAD
    try:
        images = hashlib.sha256("".join(map(image_key, record.images)).encode()).digest()[:HALF]
    except DataError:
        images = UNREAD
    return text_digest(record) + images


def readable(records: Source, row: int) -> Record | None:
    """A row, None where it cannot be read."""
    try:
        return records[row]
    except BadRow:
        return None


def edited_shards(folder: Path, manifest: Manifest, read: Callable[[int], Record | None]) -> list[int]:
    """Numbers of whole shards with a row that was edited since. A row that cannot be read now is not taken for edited:
    a disk that is not mounted costs no store its shards.

    Args:
        read: a row by its number, counted through all sources.
    """
    found, missing = [], set(missing_shards(folder, manifest))
    whole = [number for number in range(manifest.shards) if number not in missing]
    with ThreadPoolExecutor() as pool:  # reading files and hashing let other threads run
        for number in tqdm(whole, desc="Rows compared", unit=" shards", leave=False):
            there = rows_of_shard(shard_path(folder, number)).reshape(-1, 2, HALF)
            digests = pool.map(row_digest, map(read, manifest.rows_of(number)))
            here = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(there.shape)
            if ((there != here).any(-1) & here.any(-1)).any():
                found.append(number)
    return found


def drop_edited(folder: Path, manifest: Manifest, read: Callable[[int], Record | None]) -> str | None:
    """Remove the shards with rows that were edited since, so that they are filled again; what was done, in words. Call
    on one rank, before the others. See `edited_shards`."""
    edited = edited_shards(folder, manifest, read)
    for number in edited:
        shard_path(folder, number).unlink()
    if not edited:
        return None
    return (
        f"{folder}: rows of {len(edited):,} of {manifest.shards:,} shards were edited after they were filled; their "
        "shards are filled again"
    )


def require_unedited(folder: Path, manifest: Manifest, mixture: Sequence[SourceSection], at: str) -> None:
    """Refuse rows whose text is not that of any row the store was filled from. Images are not read here: one that was
    edited is found where its row is.

    Args:
        mixture: that of the store's manifest; at: its key path.

    Raises: ConfigError naming the first of them.
    """
    if manifest.format == 1:  # nothing was kept of the rows; one without answers is found where it is
        return
    known = {text.tobytes() for rows in shards_of(folder, manifest) for text in rows[:, :HALF]}
    edited: list[str] = []
    total = 0
    for place, section in enumerate(mixture):
        records = open_source(section, at=f"{at}[{place}]")
        total += len(records)
        for row in range(len(records)):
            record = readable(records, row)
            if record is not None and text_digest(record) not in known:
                edited.append(f"{at}[{place}] {section.source}, row {row}: record {record.id!r}")
    if edited:
        raise ConfigError(
            f"teacher.store {folder} was filled before {at} was edited: the text of {len(edited):,} of {total:,} rows "
            f"is none that its teacher was asked about, the first is {edited[0]}. mmkd cache with this config asks "
            "again where rows were edited; rows put in or taken out need another store."
        )


def filled_digest(folder: Path, manifest: Manifest) -> str:
    """SHA-256 of what a store is and of the rows it was filled from."""
    digest = hashlib.sha256(manifest.model_dump_json().encode())
    for rows in shards_of(folder, manifest) if manifest.format > 1 else ():
        digest.update(rows.tobytes())
    return digest.hexdigest()
