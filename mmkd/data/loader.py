"""Micro batches of a rank: mixture -> records -> samples -> tensors, bad rows set aside on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mmkd.config.schema import DataSection
from mmkd.data.collate import Sample, collate, prepare
from mmkd.data.mixture import Mixture, step_indices
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError, DataError
from mmkd.models.processing_mmkd import MmkdProcessor

MOST_BAD = 0.1
FEW = 50


class Samples(Dataset[Sample]):
    """Prepared samples by mixture index. A bad row is written to `rejected` with its reason and replaced by the next
    good row of its own source; more than 10 % bad (after 50) stops the run.
    """

    def __init__(self, mixture: Mixture, processor: MmkdProcessor, max_length: int, rejected: Path):
        self.mixture, self.processor, self.max_length, self.rejected = mixture, processor, max_length, rejected
        self.seen, self.bad = 0, set[tuple[int, int]]()

    def __getitem__(self, index: int) -> Sample:
        source, row = self.mixture.place(index)
        records = self.mixture.sources[source]
        for _ in range(len(records)):
            self.seen += 1
            try:
                return prepare(records[row], self.processor, self.max_length)
            except DataError as error:
                self._set_aside(source, row, str(error))
            row = (row + 1) % len(records)
        raise DataError(f"source {source} has no usable row; the reasons are in {self.rejected}.")

    def _set_aside(self, source: int, row: int, reason: str) -> None:
        if (source, row) in self.bad:
            return
        self.bad.add((source, row))
        line = {"source": source, "row": row, "id": self.mixture.sources[source][row].id, "reason": reason}
        self.rejected.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of several workers do not mix.
        handle = os.open(self.rejected, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)
        if self.seen >= FEW and len(self.bad) > MOST_BAD * self.seen:
            raise DataError(
                f"{len(self.bad)} of {self.seen} rows could not be used, more than 10 %; last: {reason} All reasons are in "
                f"{self.rejected}. Mend the data, or take the source out of data.mixture."
            )


def build_loader(
    data: DataSection,
    processor: MmkdProcessor,
    *,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    rejected: Path,
) -> Iterator[dict[str, Any]] | DataLoader:
    """Endless micro batches of one rank from optimiser step `start_step` on."""
    if data.packing or data.cache_features:
        raise ConfigError("data.packing and data.cache_features are not built yet; leave them off.")
    mixture = Mixture([open_source(s) for s in data.mixture], [s.weight for s in data.mixture], seed)
    samples = Samples(mixture, processor, data.max_length, rejected)
    order = step_indices(batch_size, micro_batch_size, rank, world_size, start_step)
    return DataLoader(
        samples,
        batch_sampler=order,
        collate_fn=lambda batch: collate(batch, processor),
        num_workers=data.workers,
        persistent_workers=data.workers > 0,
    )
