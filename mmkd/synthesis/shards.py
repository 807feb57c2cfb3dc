"""Journals that workers write each for itself, and how they come into the one store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.errors import DataError
from mmkd.synthesis.store import Entry, Store

FOLDER = "shards"
DYING_SECONDS = 60.0  # that a worker may live on when the process that started it was killed


def shard_of(folder: Path, name: str) -> Path:
    """The folder of a worker's own store, inside the folder of the store that it will go into."""
    return folder / FOLDER / name


def merge(store: Store, name: str) -> Iterator[Entry]:
    """Append to `store` what it does not have of a shard, then remove the shard. Yields what was appended.

    Killed at any moment, it is done again from the start and appends nothing twice.

    Raises: DataError where a worker still writes the shard, or the disk takes no more.
    """
    shard = shard_of(store.folder, name)
    if not shard.is_dir():  # its worker could not begin
        return
    lock = FileLock(shard / "writer.lock")
    try:
        lock.acquire(timeout=DYING_SECONDS)
    except Timeout:
        raise DataError(
            f"{shard} is still being written; end the workers of the run before (ray stop, or ray job stop), then run "
            "again."
        ) from None
    with lock:
        for entry in entries_of(shard / "journal.jsonl"):
            if entry not in store.entries(entry.key):
                store.append(entry)
                yield entry
        store.sync()  # before the only other copy goes
        shutil.rmtree(shard)


def merge_left(store: Store) -> None:
    """Merge what a killed run left. Raises as `merge` does."""
    for shard in sorted((store.folder / FOLDER).glob("*/")):
        for _ in merge(store, shard.name):
            pass


def entries_of(journal: Path) -> Iterator[Entry]:
    """Entries of a journal; lines that are torn or broken are passed over, as a Store does."""
    if not journal.is_file():  # killed before it was made
        return
    with journal.open("rb") as lines:
        for line in lines:
            try:
                if line.endswith(b"\n"):
                    yield Entry.read(line)
            except (ValueError, KeyError, TypeError):
                continue
