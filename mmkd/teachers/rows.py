"""The rows of a config's data as batches for a teacher that is asked about each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mmkd.config.schema import RationalesSection
from mmkd.data.collate import Collator
from mmkd.data.hub import Stream
from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.data.sources import Source
from mmkd.data.teacher_rows import row_key
from mmkd.errors import ConfigError, MmkdError
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.teachers.edited import readable, row_digest


class TeacherBatches(Dataset[Any]):
    """Batches of rows by their numbers, counted through all sources. Text is the student's, pixels are the teacher's.

    A batch has `keys`, one for each of its samples, and `rows`, a digest of each of its rows; beside them the
    collator's tensors, unless no row can be used.

    Args:
        sources: not streams, whose rows have no numbers.
        names: of the sources, for messages.
        student, teacher: processors.
        rationales: as data.rationales; a row may then be two samples.
        pairs: every row is a preference pair, and two samples.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        student: MmkdProcessor,
        teacher: MmkdProcessor,
        max_length: int,
        rejected: Path,
        rationales: RationalesSection | None = None,
        pairs: bool = False,
    ):
        if any(isinstance(source, Stream) for source in sources):
            raise ConfigError("mmkd cache needs all rows beforehand; switch streaming off in data.mixture.")
        self.sources, self.names = list(sources), list(names)
        self.reader = Collator(student, max_length, rationales=rationales, pairs=pairs)
        self.viewer = Collator(teacher, max_length)
        self.own_pixels = student.fingerprint != teacher.fingerprint
        self.rejected = RejectedLog(rejected)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, rows: list[int]) -> dict[str, Any] | MmkdError:
        try:
            return self._batch(rows)
        except MmkdError as error:
            return error  # see mmkd.data.loader.MicroBatches

    def record(self, number: int) -> Record | None:
        """A row, None where it cannot be read."""
        source, row = self._place(number)
        return readable(self.sources[source], row)

    def place(self, number: int) -> tuple[str, int]:
        """A row's source, by its name, and its index there, as `rejected` has them."""
        source, row = self._place(number)
        return self.names[source], row

    def _batch(self, rows: list[int]) -> dict[str, Any]:
        keys, samples, digests = [], [], []
        for number in rows:
            source, row = self._place(number)
            record_id, digest = "", row_digest(None)
            try:
                record = self.sources[source][row]
                record_id, digest = record.id, row_digest(record)
                sample = self.reader.prepare(record)
                if self.own_pixels and record.images:
                    pixels, tiles = self.viewer.processor.image_tensors([open_image(image) for image in record.images])
                    twin = sample.twin and replace(sample.twin, images=pixels, tiles=tiles)
                    sample = replace(sample, images=pixels, tiles=tiles, twin=twin)
            except BadRow as error:
                self.rejected.reject(self.names[source], row, record_id, error)
                continue
            finally:
                digests.append(digest)
            self.rejected.good()
            for one in (sample, sample.twin):
                if one is not None:
                    keys.append(row_key(record.images, one.ids, one.answer))
                    samples.append(replace(one, twin=None))
        return (self.viewer.collate(samples) if samples else {}) | {"keys": keys, "rows": digests}

    def _place(self, number: int) -> tuple[int, int]:
        for source, records in enumerate(self.sources):
            if number < len(records):
                return source, number
            number -= len(records)
        raise IndexError(number)
