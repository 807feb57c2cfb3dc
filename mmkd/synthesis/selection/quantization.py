"""Dataset Quantization: few rows that stand for all of them (Zhou et al., ICCV 2023)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable

import numpy as np

from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.errors import ConfigError
from mmkd.synthesis.selection.registry import Rows, register

TEXT, SIDE = 128, 8  # features of text; pixels on a side of the thumbnail
Features = Callable[[Record], np.ndarray]


@register("quantization")
def quantization(rows: Rows, keep: float, bins: int = 10, chunk: int = 4096) -> dict[int, str]:
    """Keeps a share of the rows, spread over what there is.

    The rows are parted into bins, one after the other: each next row of a bin is the one farthest from those in the bin
    and nearest to those that are left, as the paper has it. So the first bins hold what is typical and diverse,
    the last ones the rest, and the same share is drawn from each.

    Args:
        keep: share of rows, more than 0 and less than 1.
        bins: how many; chunk: rows that are parted together, drawn by the seed. Time grows with rows x chunk.

    Raises: ConfigError for a share or number that cannot be.
    """
    if not 0 < keep < 1 or bins < 1 or chunk < bins:
        raise ConfigError(f"quantization has keep {keep}, bins {bins}, chunk {chunk}; 0 < keep < 1 <= bins <= chunk.")
    random = np.random.RandomState(rows.seed)
    features = np.stack([features_of(record) for _, record in rows]) if len(rows) else np.zeros((0, 1))
    order, dropped, seen = random.permutation(len(rows)), {}, 0
    for start in range(0, len(order), chunk):
        members = order[start : start + chunk]
        for number, place in enumerate(bins_of(features[members], bins)):
            # Of all rows so far, so that bins of a few rows do not each round their share down to none.
            due = _share(keep, seen + len(place)) - _share(keep, seen)
            seen += len(place)
            drawn = random.permutation(len(place))[:due]
            kept = set(place[drawn].tolist())
            for i in place.tolist():
                if i not in kept:
                    dropped[rows.kept[members[i]]] = f"not drawn from bin {number}"
    return dropped


def _share(keep: float, rows: int) -> int:
    return math.ceil(round(keep * rows, 6))  # 0.1 x 30 is a little more than 3


def bins_of(features: np.ndarray, bins: int) -> list[np.ndarray]:
    """Rows of `features` [N, D] parted into bins of nearly equal size, by index.

    The next row x of a bin S, of the rows R that are in no bin, is the largest of
    sum_{p in S} |x - p|^2 - sum_{p in R} |x - p|^2, which needs only |S|, |R|, and the sums of their rows.
    """
    left = np.ones(len(features), dtype=bool)
    squares, rest = (features**2).sum(1), features.sum(0)  # rest: sum of the rows in R
    parted = []
    for size in [len(part) for part in np.array_split(np.arange(len(features)), bins)]:
        chosen, inside = [], np.zeros(features.shape[1])
        for _ in range(size):
            # (|S| - |R|) |x|^2 - 2 x . (sum S - sum R), less what is the same for every x.
            score = (len(chosen) - left.sum()) * squares - 2 * features @ (inside - rest)
            best = int(np.where(left, score, -np.inf).argmax())
            left[best] = False
            chosen.append(best)
            inside, rest = inside + features[best], rest - features[best]
        parted.append(np.array(chosen, dtype=int))
    return parted


def features_of(record: Record) -> np.ndarray:
    """[D]: hashed words of the turns, and a thumbnail of the first picture, each of length 1."""
    words = np.zeros(TEXT)
    for word in re.findall(r"\w+", " ".join(turn.text for turn in record.turns).lower()):
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        words[number % TEXT] += 1 if number >> 63 else -1
    picture = np.zeros(SIDE * SIDE * 3)
    if record.images:
        thumbnail = open_image(record.images[0]).resize((SIDE, SIDE))
        picture = np.asarray(thumbnail, dtype=float).ravel() / 255 - 0.5
    return np.concatenate([_unit(words), _unit(picture)])


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length else vector
