"""The order of samples: a pure function of (seed, index), whatever the number of ranks or the step a run resumes at."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

from mmkd.data.records import Record


class Mixture:
    """An endless stream of records, by index. Each source is visited in a new seeded order every epoch.

    Args:
        sources: at least one.
        weights: share of each source; its length where None.
    """

    def __init__(self, sources: Sequence[Sequence[Record]], weights: Sequence[float | None], seed: int):
        self.sources, self.seed = sources, seed
        shares = [float(w if w is not None else len(s)) for s, w in zip(sources, weights, strict=True)]
        self.bounds = [b / sum(shares) for b in accumulate(shares)]
        self._orders: dict[tuple[int, int], list[int]] = {}
        self._drawn: list[tuple[int, int]] = []  # (source, how many of it came before) of each index seen so far
        self._counts = [0] * len(sources)

    def place(self, index: int) -> tuple[int, int]:
        """(source, row) of sample `index`."""
        while len(self._drawn) <= index:
            source = 0
            if len(self.sources) > 1:
                chance = random.Random(f"{self.seed}/draw/{len(self._drawn)}").random()
                source = min(bisect.bisect(self.bounds, chance), len(self.sources) - 1)
            self._drawn.append((source, self._counts[source]))
            self._counts[source] += 1
        source, before = self._drawn[index]
        epoch, place = divmod(before, len(self.sources[source]))
        if (source, epoch) not in self._orders:
            order = list(range(len(self.sources[source])))
            random.Random(f"{self.seed}/{source}/{epoch}").shuffle(order)
            self._orders = {key: o for key, o in self._orders.items() if key[0] != source or key[1] == epoch - 1}
            self._orders[source, epoch] = order
        return source, self._orders[source, epoch][place]

    def __getitem__(self, index: int) -> Record:
        source, row = self.place(index)
        return self.sources[source][row]


def step_indices(
    batch_size: int, micro_batch_size: int, rank: int, world_size: int, start_step: int
) -> Iterator[list[int]]:
    """Sample indices of each micro batch of a rank, for ever. Step s is always [s * B, (s + 1) * B) over all ranks."""
    share = batch_size // world_size
    step = start_step
    while True:
        first = step * batch_size + rank * share
        for start in range(first, first + share, micro_batch_size):
            yield list(range(start, start + micro_batch_size))
        step += 1
