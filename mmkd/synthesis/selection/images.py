"""Pictures as small numbers: a perceptual hash, and groups of pictures that look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from mmkd.data.images import open_image
from mmkd.errors import ConfigError

BITS = 64


def perceptual_hash(image: str | bytes) -> int:
    """64 bits of a picture's low frequencies (pHash); resizing and recompression change few. Raises DataError."""
    try:
        import imagehash
    except ImportError as error:
        raise ConfigError("near_duplicates needs imagehash: pip install 'mmkd[synthesis]'.") from error
    return int(str(imagehash.phash(open_image(image))), 16)


class AlikeImages:
    """Gives each picture the number of the first one that looks like it.

    Two hashes at most `distance` bits apart agree in at least one of distance + 1 pieces, so only pictures that share a
    piece are compared.
    """

    def __init__(self, distance: int):
        if not 0 <= distance < BITS // 2:
            raise ConfigError(f"image_distance {distance}: 0 to {BITS // 2 - 1} bits of {BITS}.")
        self.distance = distance
        edges = [BITS * piece // (distance + 1) for piece in range(distance + 2)]
        self._pieces = [(start, (1 << (end - start)) - 1) for start, end in pairwise(edges)]
        self._groups: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in self._pieces]
        self._leaders: list[int] = []  # hash of the first picture of each group
        self._known: dict[int, int] = {}

    def group(self, hashed: int) -> int:
        if hashed not in self._known:
            found = next((i for i in self._candidates(hashed) if self._near(self._leaders[i], hashed)), None)
            self._known[hashed] = self._begin(hashed) if found is None else found
        return self._known[hashed]

    def _candidates(self, hashed: int) -> Iterable[int]:
        places = zip(self._pieces, self._groups)
        return sorted({i for (start, mask), groups in places for i in groups.get(hashed >> start & mask, ())})

    def _near(self, one: int, other: int) -> bool:
        return (one ^ other).bit_count() <= self.distance

    def _begin(self, hashed: int) -> int:
        self._leaders.append(hashed)
        for (start, mask), groups in zip(self._pieces, self._groups):
            groups[hashed >> start & mask].append(len(self._leaders) - 1)
        return len(self._leaders) - 1
