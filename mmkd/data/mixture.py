"""The order of samples: a pure function of (seed, index), whatever the number of ranks or the step a run resumes at.

Step s of a run with global batch B trains on samples s*B .. (s+1)*B - 1 of the mixture, always. So a resumed run starts
at its index and skips nothing, and one rank sees what two ranks or four accumulated micro batches see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mmkd.data.hub import Stream
from mmkd.data.records import Record
from mmkd.data.sources import Source
from mmkd.errors import ConfigError

BLOCK = 10_000


class Mixture:
    """An endless stream of records, by index.

    The stream is cut into blocks of 10,000 samples. In every block each source has its exact share (to 1/10,000, at
    least one sample), in a seeded order, so how much of a source came before any index is known without a look back.
    Each source is visited in a new seeded order every epoch; a stream in its own order.

    Args:
        sources: at least one.
        weights: share of each source; where all are None, their lengths.

    Raises: ConfigError where only some weights are given, or a stream, which has no length, has none.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float | None], seed: int):
        self.sources, self.seed = list(sources), seed
        self.quotas = _quotas(_shares(self.sources, weights))
        self._slots = np.repeat(np.arange(len(self.sources)), self.quotas)  # source of each sample of a sorted block
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def lengths(self) -> list[int | None]:
        """Rows of each source, None for a stream."""
        return [None if isinstance(source, Stream) else len(source) for source in self.sources]

    def place(self, index: int) -> tuple[int, int]:
        """(source, row) of sample `index`."""
        return next(self.candidates(index))

    def candidates(self, index: int) -> Iterator[tuple[int, int]]:
        """(source, row) of sample `index`, then what replaces it where it is bad: the rows that follow it in its
        source, in the epoch's order, each once."""
        source, before = self._visit(index)
        records = self.sources[source]
        if isinstance(records, Stream):
            for row in range(before, before + Stream.KEPT):
                yield source, row
            return
        epoch, start = divmod(before, len(records))
        order = self._order(source, epoch)
        for step in range(len(order)):
            yield source, int(order[(start + step) % len(order)])

    def __getitem__(self, index: int) -> Record:
        source, row = self.place(index)
        return self.sources[source][row]

    def _visit(self, index: int) -> tuple[int, int]:
        """Source of sample `index`, and how many samples of that source come before it."""
        if len(self.sources) == 1:
            return 0, index
        block, offset = divmod(index, BLOCK)
        if self._block is None or self._block[0] != block:
            drawn = self._slots[_permutation(BLOCK, self.seed, 0, block)]
            before = np.empty(BLOCK, dtype=np.int64)  # how often the same source came before in this block
            for source, quota in enumerate(self.quotas):
                before[drawn == source] = np.arange(quota)
            self._block = (block, drawn, before)
        _, drawn, before = self._block
        source = int(drawn[offset])
        return source, block * self.quotas[source] + int(before[offset])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if (source, epoch) not in self._orders:
            # Workers meet the end of an epoch at different times, so the one before is kept.
            kept = {key: order for key, order in self._orders.items() if key[0] != source or key[1] == epoch - 1}
            kept[source, epoch] = _permutation(len(self.sources[source]), self.seed, 1 + source, epoch)
            self._orders = kept
        return self._orders[source, epoch]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_block": None, "_orders": {}}


def _permutation(length: int, *seed: int) -> np.ndarray:
    # RandomState, since NumPy promises that its numbers never change: a resumed run may be on another version.
    return np.random.RandomState(seed).permutation(length)


def _shares(sources: Sequence[Source], weights: Sequence[float | None]) -> list[float]:
    if all(weight is None for weight in weights) and not any(isinstance(s, Stream) for s in sources):
        return [float(len(source)) for source in sources]
    if len(sources) == 1:
        return [1.0]
    given = [float(weight) for weight in weights if weight is not None]
    if len(given) < len(sources):
        raise ConfigError(
            f"data.mixture: {len(given)} of {len(sources)} sources have a weight. Give one to each; or to none, which "
            "takes their lengths (not for streams, which have none)."
        )
    return given


def _quotas(shares: Sequence[float]) -> list[int]:
    """Samples of each source in a block, by largest remainder, at least one each."""
    exact = [share / sum(shares) * BLOCK for share in shares]
    quotas = [max(1, int(value)) for value in exact]
    for source in sorted(range(len(exact)), key=lambda s: (quotas[s] - exact[s], s)):
        if sum(quotas) < BLOCK:
            quotas[source] += 1
    quotas[quotas.index(max(quotas))] += BLOCK - sum(quotas)  # what the small ones were given too much
    return quotas


class StepSampler(Sampler[list[int]]):
    """Sample indices of each micro batch of one rank, for ever.

    Over all ranks, step s is [s * batch_size, (s + 1) * batch_size): rank r takes the r-th of world_size equal
    parts, in micro batches in order.

    Raises: ConfigError where the batch does not divide by ranks and micro batch.
    """

    def __init__(self, batch_size: int, micro_batch_size: int, rank: int, world_size: int, start_step: int = 0):
        if batch_size % (world_size * micro_batch_size):
            raise ConfigError(
                f"batch_size {batch_size} does not divide into micro batches of {micro_batch_size} on {world_size} "
                f"ranks; a multiple of {world_size * micro_batch_size} does."
            )
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size, self.start_step = rank, world_size, start_step

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        step = self.start_step
        while True:
            first = step * self.batch_size + self.rank * share
            for start in range(first, first + share, self.micro_batch_size):
                yield list(range(start, start + self.micro_batch_size))
            step += 1
