"""What a cached teacher knows of a record: the key by which it is found, and how many records' are put together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmkd.data.feature_store import image_key

Rows = dict[str, np.ndarray]  # arrays of one sample, by name: see `stacked`


class TeacherRows(Protocol):
    """What is asked of a teacher's cache; `mmkd.teachers.logit_store.LogitStore` is one."""

    def find(self, key: bytes, record_id: str) -> Rows: ...


def row_key(images: Sequence[str | bytes], ids: Sequence[int], answer: Sequence[int]) -> bytes:
    """SHA-256 of all that a teacher's answer depends on: the encoded images in order, the text tokens, and which of
    them are answers. Raises DataError where an image file cannot be read."""
    digest = hashlib.sha256(f"{len(images)} {len(ids)} ".encode())
    for image in images:
        digest.update(bytes.fromhex(image_key(image)))
    digest.update(np.asarray(ids, dtype="<i8").tobytes())
    digest.update(np.asarray(answer, dtype=np.uint8).tobytes())
    return digest.digest()


def stacked(samples: Sequence[Rows]) -> dict[str, Tensor]:
    """Rows of samples, one sample after the other, as tensors.

    A sample's `counts` [n] says how many entries of `ids`, `log_probs` and `weights` (flat) each of its n answer tokens
    has. They come back as [N, m], m the largest count, filled up with zeros; all else as [N].
    """
    together = {name: np.concatenate([rows[name] for rows in samples]) for name in samples[0]}
    counts = together.pop("counts").astype(np.int64)
    place = np.arange(counts.max(initial=1)) < counts[:, None]  # [N, m]
    found = {}
    for name, values in together.items():
        wide = values.astype(np.int64 if name in ("ids", "best") else np.float32)
        if name in ("ids", "log_probs", "weights"):
            grid = np.zeros(place.shape, dtype=wide.dtype)
            grid[place] = wide
            wide = grid
        found[name] = torch.from_numpy(wide)
    return found
