"""Features of a frozen vision tower, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mmkd.data.images import read_image
from mmkd.errors import DataError

DTYPES = {torch.float16: np.float16, torch.bfloat16: np.int16, torch.float32: np.float32}  # NumPy has no bfloat16


def image_key(image: str | bytes) -> str:
    """SHA-256 of the encoded image. Raises DataError where the file cannot be read."""
    return hashlib.sha256(read_image(image)).hexdigest()


class FeatureStore:
    """Tower features by image key, append-only: `features.bin`, memory-mapped, and `index.txt`, one line an image.

    An index line is written after the features it names are on disk, so a process may be killed at any byte: features
    without a line, and a last line without its newline, are ignored and written over. Several processes may read while
    others put.

    Args:
        folder: holds one folder for each tower.
        tower_hash: of everything that turns an image into features: tower weights and image processing.
        dtype: float16, bfloat16 or float32, of what is stored.
    """

    def __init__(self, folder: str | Path, tower_hash: str, dtype: torch.dtype = torch.float16):
        if dtype not in DTYPES:
            raise DataError(f"a feature store keeps float16, bfloat16 or float32, not {dtype}.")
        self.folder, self.dtype = Path(folder) / tower_hash, dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape: tuple[int, int] | None = None  # (n, D) of a tile
        self._places: dict[str, tuple[int, int]] = {}  # key -> first tile, tiles
        self._indexed = self._tiles = 0  # bytes of the index read, tiles it names
        self._map: np.ndarray | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a loader worker maps the file itself

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys without features, each once, in order."""
        self.refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def put(self, keys: Sequence[str], features: Tensor, tiles: Sequence[int] | None = None) -> None:
        """Add the features of images; keys that are there already are left as they are.

        Args:
            features: [sum of tiles, n, D]; tiles: of each image, one by default.

        Raises: DataError where the shape is not the store's, or a value does not fit the dtype.
        """
        tiles = [1] * len(keys) if tiles is None else list(tiles)
        if features.dim() != 3 or len(tiles) != len(keys) or len(features) != sum(tiles):
            raise ValueError(f"{len(keys)} keys of {sum(tiles)} tiles, but features {tuple(features.shape)}.")
        stored = features.detach().to("cpu", self.dtype).contiguous()
        if not bool(torch.isfinite(stored).all()):
            raise DataError(
                f"tower features are not finite in {self.dtype} (largest value {float(features.abs().max()):.3g}); "
                "keep them in bfloat16 or float32."
            )
        with FileLock(self.folder / "lock"):
            self._check_shape((features.shape[1], features.shape[2]))
            self.refresh()
            groups = zip(keys, stored.split(tiles), strict=True)
            fresh = {key: group for key, group in groups if key not in self._places}
            if fresh:
                self._append(fresh)
            self.refresh()

    def get(self, key: str) -> Tensor:
        """Features [tiles, n, D] of an image. Raises DataError where there are none."""
        if key not in self._places:
            self.refresh()
        if key not in self._places:
            raise DataError(f"feature store {self.folder} has no image {key}; fill it before training.")
        first, count = self._places[key]
        if self._map is None or len(self._map) < first + count:
            # [tiles, n, D]; only whole, indexed tiles are mapped
            path, kind = self.folder / "features.bin", DTYPES[self.dtype]
            self._map = np.memmap(path, dtype=kind, mode="r", shape=(self._tiles, *self._tile_shape()))
        copied = torch.from_numpy(np.array(self._map[first : first + count]))
        return copied.view(self.dtype)

    def refresh(self) -> None:
        """Take in what other processes have added."""
        if self.shape is None:
            self.shape = self._read_shape()
        try:
            with (self.folder / "index.txt").open("rb") as file:
                file.seek(self._indexed)
                tail = file.read()
        except FileNotFoundError:
            return
        whole = tail[: tail.rfind(b"\n") + 1]
        for line in whole.decode("ascii").splitlines():
            key, first, count = line.split()
            self._places[key] = (int(first), int(count))
            self._tiles = int(first) + int(count)
        self._indexed += len(whole)

    def _append(self, fresh: dict[str, Tensor]) -> None:
        lines, first = [], self._tiles
        for key, group in fresh.items():
            if not key.isalnum():
                raise ValueError(f"feature key {key!r}: letters and digits only.")
            lines.append(f"{key} {first} {len(group)}\n")
            first += len(group)
        data = torch.cat(list(fresh.values()))
        raw = (data.view(torch.int16) if self.dtype == torch.bfloat16 else data).numpy().tobytes()
        tile_bytes = self.dtype.itemsize * int(np.prod(self._tile_shape()))
        _write_at(self.folder / "features.bin", self._tiles * tile_bytes, raw)
        _write_at(self.folder / "index.txt", self._indexed, "".join(lines).encode("ascii"))

    def _tile_shape(self) -> tuple[int, int]:
        if self.shape is None:
            raise DataError(f"feature store {self.folder} is empty; fill it before training.")
        return self.shape

    def _check_shape(self, shape: tuple[int, int]) -> None:
        """Under the lock: the first put fixes the shape."""
        self.shape = self._read_shape()
        if self.shape is None:
            partial = self.folder / "shape.json.partial"
            partial.write_text(json.dumps({"shape": shape, "dtype": str(self.dtype)}))
            os.replace(partial, self.folder / "shape.json")
            self.shape = shape
        if self.shape != shape:
            raise DataError(
                f"feature store {self.folder} keeps {self.shape[0]} x {self.shape[1]} values a tile, these features "
                f"have {shape[0]} x {shape[1]}: another tower or image size. Remove the folder, or name another one."
            )

    def _read_shape(self) -> tuple[int, int] | None:
        try:
            found = json.loads((self.folder / "shape.json").read_text())
        except FileNotFoundError:
            return None
        if found["dtype"] != str(self.dtype):
            raise DataError(
                f"feature store {self.folder} keeps {found['dtype']}, {self.dtype} was asked for. Remove the folder, "
                "or keep to its dtype."
            )
        return (found["shape"][0], found["shape"][1])


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, over what a killed process may have left there, and wait until it is on disk.

    What may remain behind it of a torn index line holds no newline, so no reader takes it for a line.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        left = memoryview(data)
        while left:
            written = os.pwrite(handle, left, offset)
            left, offset = left[written:], offset + written
        os.fsync(handle)
    finally:
        os.close(handle)
