"""Rows that say nearly what an earlier row says, about nearly the same picture."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from mmkd.data.records import Record
from mmkd.errors import ConfigError
from mmkd.synthesis.selection.images import AlikeImages, perceptual_hash
from mmkd.synthesis.selection.registry import Rows, register

PERMUTATIONS = 128
WORDS = 3  # of a shingle


@register("near_duplicates")
def near_duplicates(rows: Rows, similarity: float = 0.9, image_distance: int = 4) -> dict[int, str]:
    """Drops rows whose text is near that of an earlier row with the same pictures.

    Texts are compared by MinHash (Broder 1997) in locality-sensitive buckets, pictures by perceptual hash; the same
    question about another picture is another row.

    Args:
        similarity: Jaccard similarity of their word shingles from which two texts are near; numbers always differ.
        image_distance: bits of 64 by which two pictures may differ and still be one; 0 to 31.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ConfigError("near_duplicates needs datasketch: pip install 'mmkd[synthesis]'.") from error
    if not 0 < similarity <= 1:
        raise ConfigError(f"similarity {similarity}: more than 0, at most 1.")
    alike, hashes = AlikeImages(image_distance), dict[str, int]()
    buckets = MinHashLSH(threshold=min(similarity, 0.99), num_perm=PERMUTATIONS)
    said: dict[int, np.ndarray] = {}  # packed: as sets of bytes they were two thirds of all memory
    dropped: dict[int, str] = {}
    for index, record in rows:
        pictures = []
        for image in record.images:
            name = hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else image
            if name not in hashes:
                hashes[name] = alike.group(perceptual_hash(image))
            pictures.append(hashes[name])
        shingles = shingles_of(record, pictures)
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch(list(shingles))
        packed = np.sort(np.frombuffer(b"".join(shingles), np.uint64))
        near = (other for other in sorted(buckets.query(sketch)) if jaccard(said[other], packed) >= similarity)
        twin = next(near, None)
        if twin is None:
            buckets.insert(index, sketch, check_duplication=False)
            said[index] = packed
        else:
            dropped[index] = f"near row {twin}: {jaccard(said[twin], packed):.2f} of the words, the same pictures"
    return dropped


def shingles_of(record: Record, pictures: list[int]) -> set[bytes]:
    """Hashes of runs of three words of each turn; rows of other pictures or numbers share none."""
    turns = [(turn.role, re.findall(r"\w+|[^\w\s]", turn.text.lower())) for turn in record.turns]
    # Numbers are what rows of one pattern differ in, and too few words to show: they count for every shingle.
    numbers = [word for _, words in turns for word in words if word.isdigit()]
    shingles = set()
    for role, words in turns:
        for start in range(max(1, len(words) - WORDS + 1)):
            text = f"{pictures}|{numbers}|{role}|{' '.join(words[start : start + WORDS])}"
            shingles.add(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return shingles


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sets, as arrays of different numbers."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both) if len(one) + len(other) else 1.0
