"""Micro batches of a rank: mixture -> records -> samples -> tensors, bad rows set aside on the way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmkd.config.schema import DataSection
from mmkd.data.collate import Collator, Features, Processor, Sample
from mmkd.data.mixture import Mixture, StepSampler
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.data.sources import open_source
from mmkd.data.teacher_rows import TeacherRows
from mmkd.data.teacher_side import TeacherSide
from mmkd.errors import ConfigError, DataError, MmkdError


class MicroBatches(Dataset[Any]):
    """A micro batch by its list of mixture indices.

    A bad row is set aside with its reason and replaced by the next good one of its source, in the epoch's order:
    what stands at an index depends on the data and the seed only, never on who reads it or what was read before.
    """

    def __init__(self, mixture: Mixture, names: Sequence[str], collator: Collator, rejected: RejectedLog):
        self.mixture, self.names, self.collator, self.rejected = mixture, list(names), collator, rejected

    def row_counts(self) -> dict[str, int | None]:
        """Rows of each source; a stream has no number."""
        return dict(zip(self.names, self.mixture.lengths(), strict=True))

    def __getitem__(self, indices: list[int]) -> dict[str, Any] | MmkdError:
        try:
            return self.collator.collate([self.sample(index) for index in indices])
        except MmkdError as error:
            return error  # raised again by BatchLoader: out of a worker it would come wrapped in a traceback

    def sample(self, index: int) -> Sample:
        """The sample at a mixture index. Raises DataError where its source has no usable row."""
        source = 0
        for source, row in self.mixture.candidates(index):
            name, record_id = self.names[source], ""
            try:
                record = self.mixture.sources[source][row]
                record_id = record.id
                sample = self.collator.prepare(record)
            except BadRow as error:
                self.rejected.reject(name, row, record_id, error)
                continue
            except DataError as error:
                raise DataError(f"{name}, row {row}: {error}") from error
            self.rejected.good()
            if sample.dropped:
                reason = f"the last {sample.dropped} questions were left out to fit data.max_length."
                self.rejected.note(name, row, record_id, BadRow(reason, "shortened"))
            return sample
        raise DataError(f"source {self.names[source]} has no usable row; the reasons are in {self.rejected.path}.")


class BatchLoader(DataLoader):
    """A DataLoader that raises what a worker handed back as an error."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, MmkdError):
                try:
                    raise batch
                finally:
                    # The error's traceback holds this frame. If the frame held the error too, that circle would be
                    # freed late, after the queues that tell workers to stop, and each would be waited for 5 s.
                    del batch
            yield batch


def build_loader(
    data: DataSection,
    processor: Processor,
    *,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    rejected: Path,
    feature_store: Features | None = None,
    teacher: TeacherSide | None = None,
    teacher_rows: TeacherRows | None = None,
    pairs: bool = False,
) -> BatchLoader:
    """Endless micro batches of one rank, from optimiser step `start_step` on.

    Args:
        seed: of the order; batch_size: samples of a step over all ranks; micro_batch_size: samples of one forward.
        rejected: file to which rows set aside are appended.
        feature_store: filled features of a frozen tower, in place of pixels.
        teacher: how a teacher that sees or reads otherwise than the student does so.
        teacher_rows: a cached teacher.
        pairs: every record has to be a preference pair.

    Raises: ConfigError for a batch that does not divide, options a source does not know, or weights that are not whole;
        DataError where a source cannot be read.
    """
    if data.cache_features and feature_store is None:
        raise ConfigError("data.cache_features is on, but this command keeps no feature store; leave it off.")
    sources = [open_source(section, at=f"data.mixture[{i}]") for i, section in enumerate(data.mixture)]
    mixture = Mixture(sources, [section.weight for section in data.mixture], seed)
    names = [f"data.mixture[{i}] {section.source}" for i, section in enumerate(data.mixture)]
    collator = Collator(
        processor,
        data.max_length,
        data.packing,
        data.images_per_row,
        feature_store,
        teacher,
        teacher_rows,
        data.rationales,
        pairs,
    )
    sampler = StepSampler(batch_size, micro_batch_size, rank, world_size, start_step)
    return batch_loader(MicroBatches(mixture, names, collator, RejectedLog(rejected)), sampler, data.workers)


def batch_loader(batches: Dataset[Any], sampler: Iterable[list[int]], workers: int) -> BatchLoader:
    """Loads `batches[indices]` for the lists of sample indices that the sampler gives, each a whole micro batch."""
    return BatchLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker, and no warning about forking
