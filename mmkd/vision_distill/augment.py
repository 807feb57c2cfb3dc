"""What is done to training images beside crop and flip: timm's RandAugment, random erasing, mixup and cutmix.

timm draws from the global generators of Python, numpy and torch. They are seeded by the sample's place before it draws,
and put back after it, so that both models' views and a resumed run see the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mmkd.config.vision_schema import AugmentSection, VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.methods import METHODS
from mmkd.vision_distill.views import Box, Preprocessing


@contextmanager
def seeded(place: str) -> Iterator[None]:
    """Global generators that depend on `place` alone inside, and are outside as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(place)
        np.random.seed(zlib.crc32(place.encode()))
        # torch.manual_seed also notes down for each accelerator, with a stack trace, what to seed once that is used.
        torch.default_generator.manual_seed(zlib.crc32(place.encode()))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class Augment:
    """One augmentation for the views of all models.

    Args:
        classes: K of the data; mixed labels have a column for each.
    """

    def __init__(self, section: AugmentSection, views: Mapping[str, Preprocessing], classes: int):
        self.ops = {
            name: rand_augment_transform(section.rand_augment, {"img_mean": tuple(round(255 * m) for m in view.mean)})
            for name, view in views.items()
            if section.rand_augment
        }
        self.erase = RandomErasing(section.erasing, mode="pixel", device="cpu") if section.erasing else None
        self.mix = (
            Mixup(section.mixup, section.cutmix, label_smoothing=0.0, num_classes=classes) if section.mixes else None
        )
        self.views = views

    def view(self, name: str, image: Image.Image, box: Box, flip: bool, place: str) -> Tensor:
        """[3, H, W] that the model of `name` sees of an image; the same ops on each model's view of one place."""
        view = self.views[name]
        seen = view.cut(image, box, flip)
        if not self.ops and self.erase is None:
            return view.normalised(seen)
        with seeded(place):
            if self.ops:
                seen = self.ops[name](seen)
            pixels = view.normalised(seen)
            return self.erase(pixels) if self.erase else pixels

    def mixed(self, batch: dict[str, Any], place: str) -> dict[str, Any]:
        """A micro batch, each image mixed with the one at its mirrored place; its labels [B] become shares [B, K]."""
        if self.mix is None:
            return batch
        found = dict(batch)
        for name in self.views:
            with seeded(place):
                found[name], found["labels"] = self.mix(batch[name], batch["labels"])
        return found


def check_rand_augment(config: VisionConfig) -> None:
    """Raises ConfigError for a text that is none of RandAugment's."""
    text = config.data.augment.rand_augment
    try:
        rand_augment_transform(text or "rand", {})
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"config: data.augment.rand_augment is {text!r}, which timm does not take ({error}); expected something "
            "like rand-m9-mstd0.5."
        ) from error


def check_augment(config: VisionConfig, micro_batch_size: int) -> None:
    """Raises ConfigError where images are mixed and something needs whole ones."""
    if not config.data.augment.mixes:
        return
    refused = [
        f"objectives[{i}] {section.name}"
        for i, section in enumerate(config.objectives)
        if not METHODS[section.name].mixed
    ]
    if config.space.kind != "labels":
        refused.append(f"space.kind {config.space.kind}")
    if refused:
        raise ConfigError(
            f"config: {', '.join(refused)} needs images of one class, and data.augment mixes two: set mixup and cutmix "
            "to 0."
        )
    if micro_batch_size % 2:
        raise ConfigError(
            f"config: recipe.micro_batch_size is {micro_batch_size}; data.augment mixes images in pairs: take an even "
            "number."
        )


def check_sizes(section: AugmentSection, views: Mapping[str, Preprocessing]) -> None:
    """Raises ConfigError where a box drawn in pixels would lie elsewhere in the other model's image."""
    sizes = {name.removesuffix("_pixels"): view.size for name, view in views.items()}
    boxed = [name for name in ("erasing", "cutmix") if getattr(section, name)]
    if boxed and len(set(sizes.values())) > 1:
        raise ConfigError(
            f"config: data.augment.{boxed[0]} draws a box in pixels, and the images have the sizes {sizes}: give both "
            "models one image_size."
        )
