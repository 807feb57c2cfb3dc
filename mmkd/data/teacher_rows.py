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
HIDDEN = "hidden."  # and the number of the teacher's layer: the name of its hidden states
NOWHERE = -1e30  # log of no mass, as in `mmkd.objectives.sparse`


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
    has. They come back as [N, m], m the largest count. A sample of a distribution is filled up with zeros; top k ids
    (which have a `tail`) with the row's first id and no mass, so that it is counted once; and a row of no ids, of which
    nothing is known, has no mass at all. Hidden states come back as [N, D], all else as [N].
    """
    together = {name: np.concatenate([rows[name] for rows in samples]) for name in samples[0]}
    counts = together.pop("counts").astype(np.int64)
    place = np.arange(counts.max(initial=1)) < counts[:, None]  # [N, m]
    found = {}
    for name, values in together.items():
        if name.startswith(HIDDEN):
            states = torch.from_numpy(values)
            found[name] = states.view(torch.bfloat16) if states.dtype is torch.uint16 else states
            continue
        wide = values.astype(np.int64 if name in ("ids", "best") else np.float32)
        if name in ("ids", "log_probs", "weights"):
            grid = np.zeros(place.shape, dtype=wide.dtype)
            grid[place] = wide
            if "tail" in together:
                grid = np.where(place, grid, grid[:, :1] if name == "ids" else NOWHERE).astype(wide.dtype)
            wide = grid
        elif name == "tail":
            wide = np.where(counts > 0, wide, np.float32(NOWHERE))
        found[name] = torch.from_numpy(wide)
    return found


def hidden_of(rows: dict[str, Tensor]) -> dict[int, Tensor]:
    """The hidden states among stacked rows, by the teacher's layer: [N, D], as the teacher gave them."""
    return {int(name.removeprefix(HIDDEN)): states for name, states in rows.items() if name.startswith(HIDDEN)}
