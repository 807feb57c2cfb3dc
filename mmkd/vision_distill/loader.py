"""Micro batches of labelled images: one decoding and one crop box an image, a view of it for each model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from mmkd.config.vision_schema import AugmentSection, CropSection
from mmkd.data.images import open_image
from mmkd.data.loader import BatchLoader, batch_loader
from mmkd.data.mixture import Mixture, StepSampler
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.errors import DataError, MmkdError
from mmkd.vision_distill.augment import Augment
from mmkd.vision_distill.sources import LabelledImage, LabelledImages
from mmkd.vision_distill.views import Preprocessing, scored_box, training_box

Views = dict[str, Preprocessing]  # name of the batch's tensor -> how that model wants its images


class LabelledBatches(Dataset[Any]):
    """A micro batch by its list of sample indices.

    Box, flip and augmentation are a function of (seed, index) alone, so that a resumed run sees what it would have
    seen. A bad image is set aside with its reason and replaced by the next good one in the epoch's order.
    """

    def __init__(
        self,
        images: LabelledImages,
        views: Views,
        crop: CropSection,
        seed: int,
        rejected: RejectedLog,
        augment: AugmentSection,
    ):
        self.mixture: Any = Mixture([images], [None], seed)  # pyright: ignore[reportArgumentType]
        self.augment = Augment(augment, views, len(images.classes))
        self.views, self.crop, self.seed, self.rejected = views, crop, seed, rejected

    def row_counts(self) -> dict[str, int | None]:
        """Images that an epoch has."""
        return {"data.train": len(self.mixture.sources[0])}

    def __getitem__(self, indices: list[int]) -> dict[str, Any] | MmkdError:
        try:
            samples = [self.sample(index) for index in indices]
        except MmkdError as error:
            return error  # raised again by BatchLoader: out of a worker it would come wrapped in a traceback
        return self.augment.mixed(collate(samples), f"{self.seed}/mix/{indices[0]}")

    def sample(self, index: int) -> dict[str, Any]:
        """One image's views. Raises DataError where no image can be used."""
        for source, row in self.mixture.candidates(index):
            found_id = ""
            try:
                found = self.mixture.sources[source][row]
                found_id = found.id
                image = decoded(found)
            except BadRow as error:
                self.rejected.reject("data.train", row, found_id, error)
                continue
            self.rejected.good()
            chance = random.Random(f"{self.seed}/{index}")
            box = training_box(*image.size, self.crop, chance)
            flip = chance.random() < self.crop.flip
            place = f"{self.seed}/augment/{index}"
            pixels = {name: self.augment.view(name, image, box, flip, place) for name in self.views}
            return labelled(found, pixels)
        raise DataError(f"data.train has no usable image; the reasons are in {self.rejected.path}.")


def decoded(found: LabelledImage) -> Image.Image:
    """The RGB image. Raises DataError (a BadRow) where it is none."""
    return found.image if isinstance(found.image, Image.Image) else open_image(found.image)


def labelled(found: LabelledImage, pixels: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {**pixels, "labels": torch.tensor(found.label), "sample_ids": found.id, "captions": found.caption}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors are stacked, ids and captions listed."""
    listed = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in listed.items()
    }


def scored_batches(
    images: LabelledImages, views: Views, crop: CropSection, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Every image once, in order; one that is broken raises DataError, as a score is of all images or of none."""
    for start in range(0, len(images), batch_size):
        samples = []
        for index in range(start, min(start + batch_size, len(images))):
            found = images[index]
            image = decoded(found)
            box = scored_box(*image.size, crop)
            samples.append(labelled(found, {name: view(image, box, False) for name, view in views.items()}))
        yield collate(samples)


def build_loader(
    images: LabelledImages,
    views: Views,
    crop: CropSection,
    *,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    rejected: Path,
    workers: int = 0,
    augment: AugmentSection | None = None,
) -> BatchLoader:
    """Endless micro batches of one rank, from optimiser step `start_step` on. Arguments as in `mmkd.data.loader`."""
    sampler = StepSampler(batch_size, micro_batch_size, rank, world_size, start_step)
    batches = LabelledBatches(
        images, views, crop, seed, RejectedLog(rejected, mend_or_drop("data.train")), augment or AugmentSection()
    )
    return batch_loader(batches, sampler, workers)
