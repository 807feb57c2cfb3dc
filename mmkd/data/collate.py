"""Records to the tensors a task trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
import torch
from PIL import Image
from torch import Tensor

from mmkd.data.feature_store import image_key
from mmkd.data.images import open_image
from mmkd.data.packing import pack
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.data.teacher_rows import Rows, TeacherRows, row_key, stacked
from mmkd.errors import ConfigError


class Processor(Protocol):
    """What is asked of a processor; `mmkd.models.processing_mmkd.MmkdProcessor` is one."""

    tokenizer: Any

    def encode_turns(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]: ...
    def image_tensors(self, images: list[Image.Image]) -> tuple[Tensor, list[int]]: ...
    def image_token_count(self, tiles: int) -> int: ...


class Features(Protocol):
    """What is asked of a feature store; `mmkd.data.feature_store.FeatureStore` is one."""

    shape: tuple[int, int] | None

    def get(self, key: str) -> Tensor: ...
    def __contains__(self, key: str) -> bool: ...


@dataclass
class Sample:
    """A record made ready, not yet batched.

    Attributes:
        ids: text tokens without the sink; answer: 1 where the assistant speaks.
        images: [tiles, 3, H, W] pixels, or [tiles, n, D] tower features; None without images.
        tiles: of each image.
        length: in a full-vision row: the sink, one more for each image, image tokens, text.
        dropped: question-answer pairs left out at the end to fit `max_length`.
        teacher: what a cached teacher knows of its answer tokens.
    """

    id: str
    ids: list[int]
    answer: list[int]
    images: Tensor | None
    tiles: list[int]
    length: int
    dropped: int = 0
    teacher: Rows | None = None


class Collator:
    """Records to one micro batch in the text-only layout: neither sink nor image placeholders are in `input_ids`; the
    model places images before the text.

    Args:
        max_length: most tokens of a row, full-vision image tokens included.
        packing: put several samples in a row; images_per_row: most images then.
        feature_store: gives tower features by image key, in place of pixels.
        teacher_rows: a cached teacher, which has to know every record.
    """

    def __init__(
        self,
        processor: Processor,
        max_length: int,
        packing: bool = False,
        images_per_row: int = 8,
        feature_store: Features | None = None,
        teacher_rows: TeacherRows | None = None,
    ):
        self.processor, self.max_length = processor, max_length
        self.packing, self.images_per_row = packing, images_per_row
        self.feature_store, self.teacher_rows = feature_store, teacher_rows
        self._dummy: Tensor | None = None

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """See `prepare` and `collate`."""
        return self.collate([self.prepare(record) for record in records])

    # --- one record ------------------------------------------------------------------------------------------------

    def prepare(self, record: Record) -> Sample:
        """Tokens and tensors of one record.

        Raises: BadRow for wrong roles, an empty answer, an unreadable image, or a length over `max_length` even with
            its first question alone; ConfigError where the chat template cannot tell who speaks; DataError where the
            cached teacher does not know the record.
        """
        check_turns(record.turns)
        if self.packing and len(record.images) > self.images_per_row:
            raise BadRow(
                f"{len(record.images)} images; data.images_per_row is {self.images_per_row}. Raise it.",
                "too many images",
            )
        images, tiles = self._images(record.images)
        vision = 1 + sum(1 + self.processor.image_token_count(count) for count in tiles)
        ids, answer, dropped = self._fitting(record.turns, self.max_length - vision)
        answer[:1] = [0]  # no text stands before the first token to predict it from
        if not any(answer):
            raise BadRow("no token of an answer is left by the chat template.", "empty answer")
        teacher = None
        if self.teacher_rows is not None:
            teacher = self.teacher_rows.find(row_key(record.images, ids, answer), record.id)
        return Sample(record.id, ids, answer, images, tiles, vision + len(ids), dropped, teacher)

    def _images(self, images: Sequence[str | bytes]) -> tuple[Tensor | None, list[int]]:
        if not images:
            return None, []
        if self.feature_store is None:
            return self.processor.image_tensors([open_image(image) for image in images])
        found = [_stored(self.feature_store, image) for image in images]
        return torch.cat(found), [len(features) for features in found]

    def _fitting(self, turns: list[Turn], room: int) -> tuple[list[int], list[int], int]:
        """Tokens of as many question-answer pairs as fit into `room`: the largest count, by bisection."""
        ids, answer = self._encode(turns)
        if len(ids) <= room:
            return ids, answer, 0
        system = int(turns[0].role == "system")
        pairs = (len(turns) - system) // 2
        fits, best = 0, None
        over = pairs
        while over - fits > 1:
            middle = (fits + over) // 2
            tried = self._encode(turns[: system + 2 * middle])
            if len(tried[0]) <= room:
                fits, best = middle, tried
            else:
                over = middle
        if best is None:
            raise BadRow(
                f"{self.max_length - room + len(ids)} tokens, {self.max_length - room} of them for images; "
                f"data.max_length is {self.max_length}. Raise it, or shorten the record.",
                "too long",
            )
        return *best, pairs - fits

    def _encode(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        try:
            return self.processor.encode_turns([{"role": turn.role, "content": turn.text} for turn in turns])
        except jinja2.TemplateError as error:  # the template refuses these roles
            raise BadRow(f"the chat template does not take this record: {error}.", "wrong roles") from error
        except ValueError as error:
            raise ConfigError(str(error)) from error

    # --- a batch ---------------------------------------------------------------------------------------------------

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """One micro batch of R rows (a sample each, or fewer rows with packing) and T text tokens.

        Returns:
            input_ids [R, T] padded on the right; attention_mask [R, T]; labels [R, T], the ids of answers, else -100;
            position_ids [R, T] index of a token in its sample; segment_ids [R, T] number of the sample in its row;
            pixel_values [tiles, 3, H, W], or image_features [tiles, n, D] from a feature store;
            image_tiles, image_rows, image_segments [M] of each image; sample_ids, in the order of rows; with a cached
            teacher `teacher`, its tensors of the N answer tokens in that order (see `teacher_rows.stacked`).

        A batch without any image gets one dummy of zeros on row -1: every rank then runs tower and projector, without
        which ranks under ZeRO wait for each other for ever.
        """
        rows = [[number] for number in range(len(samples))]
        if self.packing:
            lengths, counts = [s.length for s in samples], [len(s.tiles) for s in samples]
            rows = pack(lengths, counts, self.max_length, self.images_per_row)
        packed = [[samples[number] for number in row] for row in rows]
        width = max(sum(len(sample.ids) for sample in row) for row in packed)
        shape = (len(packed), width)
        batch: dict[str, Any] = {
            "input_ids": torch.full(shape, self.processor.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
            "position_ids": torch.zeros(shape, dtype=torch.long),
            "segment_ids": torch.zeros(shape, dtype=torch.long),
        }
        for row, members in enumerate(packed):
            start = 0
            for segment, sample in enumerate(members):
                ids, answer = torch.tensor(sample.ids), torch.tensor(sample.answer, dtype=torch.bool)
                span = slice(start, start + len(ids))
                batch["input_ids"][row, span] = ids
                batch["attention_mask"][row, span] = 1
                batch["labels"][row, span] = torch.where(answer, ids, -100)
                batch["position_ids"][row, span] = torch.arange(len(ids))
                batch["segment_ids"][row, span] = segment
                start = span.stop
            # Padding belongs to the last sample, so that no row has a segment of its own for it.
            batch["segment_ids"][row, start:] = len(members) - 1
        batch |= self._batched_images(packed)
        members = [sample for row in packed for sample in row]
        batch["sample_ids"] = [sample.id for sample in members]
        if self.teacher_rows is not None:
            batch["teacher"] = stacked([sample.teacher for sample in members if sample.teacher is not None])
        return batch

    def _batched_images(self, packed: list[list[Sample]]) -> dict[str, Tensor]:
        found = [
            (row, segment, count)
            for row, members in enumerate(packed)
            for segment, sample in enumerate(members)
            for count in sample.tiles
        ]
        tensors = [sample.images for members in packed for sample in members if sample.images is not None]
        if not found:
            found, tensors = [(-1, 0, 1)], [self._blank()]
        rows, segments, tiles = zip(*found)
        return {
            "pixel_values" if self.feature_store is None else "image_features": torch.cat(tensors),
            "image_tiles": torch.tensor(tiles),
            "image_rows": torch.tensor(rows),
            "image_segments": torch.tensor(segments),
        }

    def _blank(self) -> Tensor:
        """Zeros of the shape of one tile: [1, 3, H, W] or [1, n, D]."""
        if self._dummy is None:
            if self.feature_store is None:
                pixels, _ = self.processor.image_tensors([Image.new("RGB", (32, 32))])
                self._dummy = torch.zeros_like(pixels[:1])
            elif self.feature_store.shape is None:
                raise ConfigError("the feature store is empty; fill it, or switch data.cache_features off.")
            else:
                self._dummy = torch.zeros(1, *self.feature_store.shape)
        return self._dummy


def _stored(store: Features, image: str | bytes) -> Tensor:
    key = image_key(image)
    if key not in store:
        open_image(image)  # tells why the image was passed over when the store was filled
    return store.get(key)


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises BadRow unless user and assistant take turns, after at most one system turn, and no answer is empty."""
    roles = [turn.role for turn in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise BadRow(
            f"the roles are {', '.join(map(str, roles)) or 'none'}; allowed: user, assistant, in turn, after at most "
            "one system.",
            "wrong roles",
        )
    for number, turn in enumerate(turns):
        if not isinstance(turn.text, str):
            raise BadRow(f"turn {number} is a {type(turn.text).__name__}; allowed: text.", "wrong roles")
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow(f"the answer in turn {number} is empty.", "empty answer")
