"""A teacher's answers on disk: `manifest.json`, and shards of rows that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmkd.data.teacher_rows import HIDDEN, Rows
from mmkd.errors import ConfigError, DataError
from mmkd.teachers.identity import Manifest, differences
from mmkd.whole_files import write_whole

MANIFEST = "manifest.json"
PARTIAL = ".partial"
ROW_BYTES = 32  # of the digest of a row that a shard was filled from, see `mmkd.teachers.edited`
BY_ENTRY = ("ids", "log_probs", "weights")  # arrays with as many numbers as a token has ids; others have one a token


def read_manifest(folder: Path) -> Manifest:
    """Raises ConfigError where there is none, or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"teacher.store {folder} holds no teacher's cache; fill it with mmkd cache.") from None
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder / MANIFEST} cannot be read ({str(error).splitlines()[0]}); remove the folder and fill it anew."
        ) from error


def open_for_filling(folder: Path, manifest: Manifest) -> None:
    """Make a store ready to be filled, or to be filled on. Call on one rank, before the others.

    Raises: ConfigError for a store of something else, naming what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        found = differences(read_manifest(folder), manifest.model_dump())
        if found:
            raise ConfigError(
                f"teacher.store {folder} was begun with other settings: {'; '.join(found)}. Name another store, or "
                f"remove {MANIFEST} and the shards of this one."
            )
    else:
        write_whole(folder / MANIFEST, [manifest.model_dump_json(indent=1)])
    for left in folder.glob(f"*{PARTIAL}"):
        left.unlink()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.safetensors"


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """Numbers of shards that are not there, or not whole."""
    return [number for number in range(manifest.shards) if not _is_whole(folder, number, manifest)]


def write_shard(folder: Path, number: int, samples: Sequence[tuple[bytes, Rows]], rows: Sequence[bytes]) -> None:
    """Write the answers of a shard's rows, by key. Under its name a shard is whole: a kill leaves a `.partial` file,
    which nobody reads.

    Args:
        rows: the digest of each row, those that cannot be used included.
    """
    arrays: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(key for key, _ in samples), dtype=np.uint8).reshape(len(samples), 32),
        "tokens": np.array([len(kept["counts"]) for _, kept in samples], dtype=np.int32),
        "entries": np.array([len(kept["ids"]) for _, kept in samples], dtype=np.int32),
        "rows": np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), ROW_BYTES),
    }
    if samples:
        arrays |= {name: np.concatenate([kept[name] for _, kept in samples]) for name in samples[0][1]}
    path = shard_path(folder, number)
    partial = path.with_name(path.name + PARTIAL)
    save_file(arrays, partial)
    _make_last(partial, path)


class LogitStore:
    """A filled store, to read from; files are memory-mapped, rows are copied out of them.

    Raises: ConfigError where it is not filled; DataError for a shard that is broken.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> shard, number in it
        self._starts: list[tuple[np.ndarray, np.ndarray]] = []  # of each shard: first token and first entry of a row
        self._shards: dict[int, Any] = {}
        _require_filled(self.folder, self.manifest)
        for number in range(self.manifest.shards):
            keys, tokens, entries = _read_index(self.folder, number, self.manifest)
            self._starts.append((_starts(tokens), _starts(entries)))
            for place, key in enumerate(keys):
                self._places.setdefault(key, (number, place))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def keys(self) -> Set[bytes]:
        """Of all rows, see `find`."""
        return self._places.keys()

    @property
    def tokens(self) -> int:
        """Answer tokens of all rows."""
        return sum(int(tokens[-1]) for tokens, _ in self._starts)

    @property
    def bytes(self) -> int:
        return sum(shard_path(self.folder, number).stat().st_size for number in range(self.manifest.shards))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # a loader worker maps the files itself

    def find(self, key: bytes, record_id: str) -> Rows:
        """Arrays of the row with this key: see `mmkd.data.teacher_rows.stacked`.

        Args:
            record_id: for the message.

        Raises: DataError where the store has no such row, or holds token ids that do not exist.
        """
        if key not in self._places:
            raise DataError(
                f"record {record_id!r}: the teacher's cache {self.folder} has no answers for it. Its images, text, or "
                "length (data.max_length) are not those of any row the cache was filled with. Fill a store for this "
                "data with mmkd cache."
            )
        number, place = self._places[key]
        tokens, entries = ((int(first[place]), int(first[place + 1])) for first in self._starts[number])
        shard = self._shard(number)
        rows = {
            array: shard.get_slice(array)[slice(*(entries if array in BY_ENTRY else tokens))]
            for array in _arrays(self.manifest)
        }
        ids, counts = rows["ids"], rows["counts"]
        if (
            int(counts.sum()) != len(ids)
            or int(ids.max(initial=0)) >= self.manifest.vocabulary
            or int(ids.min(initial=0)) < 0
        ):
            raise DataError(f"{shard_path(self.folder, number)} is broken; delete it and go on with mmkd cache.")
        return rows

    def _shard(self, number: int) -> Any:
        if number not in self._shards:
            self._shards[number] = safe_open(shard_path(self.folder, number), framework="numpy")
        return self._shards[number]


def require_same(store: Manifest, folder: Path, here: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming what differs, where the store answers for something else than what is `here`."""
    found = differences(store, here)
    if found:
        raise ConfigError(
            f"teacher.store {folder} holds answers of {store.model} for something else: {'; '.join(found)}. Fill a "
            "store for this config with mmkd cache, or mend the config."
        )


def shards_of(folder: Path, manifest: Manifest) -> Iterator[np.ndarray]:
    """Digests of the rows that each shard was filled from, see `rows_of_shard`. Raises ConfigError where a shard is
    missing, DataError where one is broken."""
    _require_filled(folder, manifest)
    for number in range(manifest.shards):
        yield rows_of_shard(shard_path(folder, number))


def rows_of_shard(path: Path) -> np.ndarray:
    """Digests of the rows that a shard was filled from, uint8 [rows, ROW_BYTES]. Raises DataError for a broken one."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("rows")
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error


def _require_filled(folder: Path, manifest: Manifest) -> None:
    left = sum(not shard_path(folder, number).is_file() for number in range(manifest.shards))
    if left:
        raise ConfigError(
            f"teacher.store {folder} is not filled: {left} of {manifest.shards} shards are missing. Go on with mmkd "
            "cache."
        )


def _arrays(manifest: Manifest) -> tuple[str, ...]:
    names = ["ids", "log_probs", "counts", "answers", "best", "tail" if manifest.targets == "top_k" else "weights"]
    names += [f"{HIDDEN}{layer}" for layer in manifest.hidden_layers] + ["hits"] * manifest.hits
    return tuple(names)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _is_whole(folder: Path, number: int, manifest: Manifest) -> bool:
    try:
        _read_index(folder, number, manifest)
    except DataError:
        return False
    return True


def _read_index(folder: Path, number: int, manifest: Manifest) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Keys, tokens and entries of a shard's rows. Raises DataError for a file that is no whole shard."""
    path = shard_path(folder, number)
    try:
        with safe_open(path, framework="numpy") as file:  # refuses a file whose header and length do not agree
            keys, tokens, entries = (file.get_tensor(name) for name in ("keys", "tokens", "entries"))
            if keys.ndim != 2 or keys.shape[1] != 32 or not len(keys) == len(tokens) == len(entries):
                raise ValueError("its index is not one")
            if manifest.format > 1 and file.get_slice("rows").get_shape() != [len(manifest.rows_of(number)), ROW_BYTES]:
                raise ValueError(f"it is not of {len(manifest.rows_of(number))} rows")
            for name in _arrays(manifest) if len(keys) else ():
                expected = [int((entries if name in BY_ENTRY else tokens).sum(dtype=np.int64))]
                expected += [manifest.width] if name.startswith(HIDDEN) else []
                if file.get_slice(name).get_shape() != expected:
                    raise ValueError(f"{name} is not of {' x '.join(map(str, expected))} numbers")
    except (OSError, SafetensorError, ValueError) as error:
        raise _broken(path, error) from error
    return [row.tobytes() for row in keys], tokens, entries


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is broken ({error}); delete it and go on with mmkd cache.")


def _make_last(partial: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on disk."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
