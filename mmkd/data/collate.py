"""Records to the tensors a task trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jinja2
import torch
from PIL import Image
from torch import Tensor

from mmkd.config.schema import RationalesSection
from mmkd.data.feature_store import image_key
from mmkd.data.images import open_image
from mmkd.data.packing import pack
from mmkd.data.preferences import last_run, with_rejected
from mmkd.data.rationales import token_weights, views
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow, check_text, check_turns
from mmkd.data.samples import Sample, images_of, preference_of, spans_of, texts_of, weights_of
from mmkd.data.teacher_rows import TeacherRows, row_key, stacked
from mmkd.data.teacher_side import Encoded, TeacherSide
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


class Collator:
    """Records to one micro batch in the text-only layout: neither sink nor image placeholders are in `input_ids`; the
    model places images before the text.

    Args:
        max_length: most tokens of a row, full-vision image tokens included, on either side.
        packing: put several samples in a row; images_per_row: most images then.
        feature_store: gives tower features by image key, in place of pixels.
        teacher: how a teacher that sees or reads otherwise than the student does so.
        teacher_rows: a cached teacher, which has to know every record.
        rationales: train on rationales too; a record may then become two samples.
        pairs: every record is a preference pair, and becomes two samples.
    """

    def __init__(
        self,
        processor: Processor,
        max_length: int,
        packing: bool = False,
        images_per_row: int = 8,
        feature_store: Features | None = None,
        teacher: TeacherSide | None = None,
        teacher_rows: TeacherRows | None = None,
        rationales: RationalesSection | None = None,
        pairs: bool = False,
    ):
        self.rationales, self.pairs = rationales, pairs
        self.processor, self.max_length = processor, max_length
        self.packing, self.images_per_row = packing, images_per_row
        self.feature_store = feature_store
        self.teacher, self.teacher_rows = teacher, teacher_rows
        self._sides: list[Processor] = [processor, *([teacher.processor] if teacher is not None else [])]
        self._dummy: Tensor | None = None
        self._teacher_dummy: Tensor | None = None

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """See `prepare` and `collate`."""
        return self.collate([self.prepare(record) for record in records])

    # --- one record ------------------------------------------------------------------------------------------------

    def prepare(self, record: Record) -> Sample:
        """Tokens and tensors of one record; as the sample's twin, of its rationales, or of a pair's rejected answer.

        Raises: BadRow for wrong roles, an empty answer, broken text, an unreadable image, answers that two sides do not
            align, no pair where there should be one, or a length over `max_length` even with its first question alone
            (a pair is not shortened); ConfigError where the chat template cannot tell who speaks; DataError where the
            cached teacher does not know the record.
        """
        check_turns(record.turns)
        if self.pairs:
            return self._pair(record)
        seen = self._seen(record)
        if self.rationales is None:
            return self._sample(record, record.turns, seen)
        samples = []
        for view in views(record.turns, self.rationales.mode):
            check_turns(view.turns)
            sample = self._sample(record, view.turns, seen)
            sample.weights, sample.answers = token_weights(sample.answer, view.kinds, self.rationales.weight)
            samples.append(sample)
        samples[0].twin = samples[1] if len(samples) > 1 else None
        return samples[0]

    def _pair(self, record: Record) -> Sample:
        seen = self._seen(record)
        chosen = self._sample(record, record.turns, seen)
        worse = with_rejected(record.turns)
        check_text(worse[-1].text)
        rejected = self._sample(record, worse, seen, last_only=True)
        if chosen.dropped or rejected.dropped:
            raise BadRow("a preference pair is not shortened to fit data.max_length; raise that.", "too long")
        chosen.preference, rejected.preference = last_run(chosen.answer), [-mark for mark in rejected.answer]
        chosen.twin = rejected
        return chosen

    def _seen(self, record: Record) -> list[tuple[Tensor | None, list[int]]]:
        """Tensor and tiles of the images, of each side."""
        if self.packing and len(record.images) > self.images_per_row:
            raise BadRow(
                f"{len(record.images)} images; data.images_per_row is {self.images_per_row}. Raise it.",
                "too many images",
            )
        images = [self._images(record.images)]
        if self.teacher is not None:
            images.append(self._teacher_images(record.images, images[0][1]))
        return images

    def _sample(
        self, record: Record, turns: list[Turn], images: list[tuple[Tensor | None, list[int]]], last_only: bool = False
    ) -> Sample:
        """`images`: see `_seen`; `last_only`: only the last answer is one."""
        vision = [
            1 + sum(1 + side.image_token_count(count) for count in tiles)
            for side, (_, tiles) in zip(self._sides, images, strict=True)
        ]
        texts, dropped = self._fitting(turns, vision)
        for _, answer in texts:
            answer[:1] = [0]  # no text stands before the first token to predict it from
            if last_only:
                answer[:] = last_run(answer)
        if not all(any(answer) for _, answer in texts):
            raise BadRow("no token of an answer is left by the chat template.", "empty answer")
        length = max(count + len(ids) for count, (ids, _) in zip(vision, texts, strict=True))
        sample, *others = (
            Sample(record.id, *text, *seen, length, dropped) for text, seen in zip(texts, images, strict=True)
        )
        if self.teacher is not None:
            sample.teacher = others[0]
            sample.spans = self.teacher.spans(*texts) if self.teacher.own_tokens else []
        if self.teacher_rows is not None:
            sample.teacher_rows = self.teacher_rows.find(row_key(record.images, *texts[0]), record.id)
        return sample

    def _images(self, images: Sequence[str | bytes]) -> tuple[Tensor | None, list[int]]:
        if not images:
            return None, []
        if self.feature_store is None:
            return self.processor.image_tensors([open_image(image) for image in images])
        found = [_stored(self.feature_store, image) for image in images]
        return torch.cat(found), [len(features) for features in found]

    def _teacher_images(self, images: Sequence[str | bytes], tiles: list[int]) -> tuple[Tensor | None, list[int]]:
        """None, and the student's tiles, where the teacher sees what the student sees."""
        if self.teacher is None or not self.teacher.own_images or not images:
            return None, tiles
        return self.teacher.processor.image_tensors([open_image(image) for image in images])

    def _fitting(self, turns: list[Turn], vision: list[int]) -> tuple[list[Encoded], int]:
        """Tokens, for each side, of as many question-answer pairs as fit beside so many vision tokens: the largest
        count, by bisection."""

        def fit(texts: list[Encoded]) -> bool:
            return all(count + len(ids) <= self.max_length for count, (ids, _) in zip(vision, texts, strict=True))

        texts = self._encode(turns)
        if fit(texts):
            return texts, 0
        system = int(turns[0].role == "system")
        pairs = (len(turns) - system) // 2
        fits, best = 0, None
        over = pairs
        while over - fits > 1:
            middle = (fits + over) // 2
            tried = self._encode(turns[: system + 2 * middle])
            if fit(tried):
                fits, best = middle, tried
            else:
                over = middle
        if best is None:
            total, images = max((count + len(ids), count) for count, (ids, _) in zip(vision, texts, strict=True))
            raise BadRow(
                f"{total} tokens, {images} of them for images; data.max_length is {self.max_length}. Raise it, or "
                "shorten the record.",
                "too long",
            )
        return best, pairs - fits

    def _encode(self, turns: Sequence[Turn]) -> list[Encoded]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            if self.teacher is not None and self.teacher.own_tokens:
                return [side.encode_turns(messages) for side in self._sides]
            return [self.processor.encode_turns(messages)] * len(self._sides)
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
            image_tiles, image_rows, image_segments [M] of each image; sample_ids, in the order of rows;
            teacher, what one reads otherwise: images, where it processes them otherwise; where it reads tokens of its
            own, the text tensors of those, and spans [S, 3], see `samples.spans_of`;
            teacher_rows, of a cached teacher: its tensors of the N answer tokens in that order, see
            `teacher_rows.stacked`; with rationales, each sample is followed by its twin, and there are
            loss_weights [R, T] and loss_answers, see `samples.weights_of`; with pairs it is, too, and there is
            preference [R, T], see `samples.preference_of`; without packing a twin's images are those of its sample,
            once in the batch, and readers [R] names for each row the one whose images it reads.

        A batch without any image gets one dummy of zeros on row -1: every rank then runs tower and projector, without
        which ranks under ZeRO wait for each other for ever.
        """
        given, samples, readers = samples, list[Sample](), list[int]()
        for sample in given:
            for one in (sample, sample.twin):
                if one is not None:
                    readers.append(len(samples) if one is sample else readers[-1])
                    samples.append(one)
        rows = [[number] for number in range(len(samples))]
        if self.packing:
            lengths, counts = [s.length for s in samples], [len(s.tiles) for s in samples]
            rows = pack(lengths, counts, self.max_length, self.images_per_row)
        packed = [[samples[number] for number in row] for row in rows]
        batch: dict[str, Any] = texts_of(packed, self.processor.tokenizer.pad_token_id)
        if self.rationales is not None:
            batch |= weights_of(packed, batch["input_ids"].shape[1])
        if self.pairs:
            batch["preference"] = preference_of(packed, given, batch["input_ids"].shape[1])
        name = "pixel_values" if self.feature_store is None else "image_features"
        shared = not self.packing and len(given) < len(samples)
        if shared:
            batch["readers"] = torch.tensor(readers)

        def seeing(packed: list[list[Sample]]) -> list[list[Sample]]:
            """Twins left out, whose images are there."""
            return [row if readers[at] == at else [] for at, row in enumerate(packed)] if shared else packed

        batch |= images_of(seeing(packed), name, self._blank)
        if self.teacher is not None:
            theirs = [[sample.teacher for sample in row if sample.teacher is not None] for row in packed]
            own = self.teacher.own_images
            other = images_of(seeing(theirs), "pixel_values", self._teacher_blank) if own else {}
            if self.teacher.own_tokens:
                other |= texts_of(theirs, self.teacher.processor.tokenizer.pad_token_id)
                other["spans"] = spans_of(packed, batch["labels"], other["labels"])
            batch["teacher"] = other
        members = [sample for row in packed for sample in row]
        batch["sample_ids"] = [sample.id for sample in members]
        if self.teacher_rows is not None:
            batch["teacher_rows"] = stacked([s.teacher_rows for s in members if s.teacher_rows is not None])
        return batch

    def _blank(self) -> Tensor:
        """Zeros of the shape of one tile: [1, 3, H, W] or [1, n, D]."""
        if self._dummy is None:
            if self.feature_store is None:
                self._dummy = _blank_tile(self.processor)
            elif self.feature_store.shape is None:
                raise ConfigError("the feature store is empty; fill it, or switch data.cache_features off.")
            else:
                self._dummy = torch.zeros(1, *self.feature_store.shape)
        return self._dummy

    def _teacher_blank(self) -> Tensor:
        if self._teacher_dummy is None:
            self._teacher_dummy = _blank_tile(self._sides[1])
        return self._teacher_dummy


def _blank_tile(processor: Processor) -> Tensor:
    pixels, _ = processor.image_tensors([Image.new("RGB", (32, 32))])
    return torch.zeros_like(pixels[:1])


def _stored(store: Features, image: str | bytes) -> Tensor:
    key = image_key(image)
    if key not in store:
        open_image(image)  # tells why the image was passed over when the store was filled
    return store.get(key)
