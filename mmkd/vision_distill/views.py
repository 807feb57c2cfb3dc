"""One decoded image, one crop box, and what each model sees of it in its own size and normalisation."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling, Transpose
from torch import Tensor

from mmkd.config.vision_schema import CropSection

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels
TRIES = 10


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images: (height, width) in pixels, mean and deviation of RGB in 0..1, PIL's filter."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image, box: Box, flip: bool) -> Tensor:
        """[3, H, W] of the box of an RGB image."""
        return self.normalised(self.cut(image, box, flip))

    def cut(self, image: Image.Image, box: Box, flip: bool) -> Image.Image:
        """The box in the model's size; cut and resized in one pass over the original pixels."""
        filters = {f.name.lower(): f for f in Resampling}  # timm's "random" is none of them
        resample = filters.get(self.interpolation, Resampling.BICUBIC)
        seen = image.resize((self.size[1], self.size[0]), resample, box=box)
        return seen.transpose(Transpose.FLIP_LEFT_RIGHT) if flip else seen

    def normalised(self, seen: Image.Image) -> Tensor:
        """[3, H, W] of an image in the model's size."""
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1).float() / 255  # [3, H, W]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def training_box(width: int, height: int, crop: CropSection, chance: random.Random) -> Box:
    """A box of a random share of the area and a random shape, both in `crop`'s limits; the whole image where its limits
    are met by no box in ten tries, or the scale is 1."""
    if crop.scale[0] >= 1:
        return 0.0, 0.0, float(width), float(height)
    for _ in range(TRIES):
        area = chance.uniform(*crop.scale) * width * height
        ratio = math.exp(chance.uniform(math.log(crop.ratio[0]), math.log(crop.ratio[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, upper = chance.uniform(0, width - w), chance.uniform(0, height - h)
            return left, upper, min(left + w, width), min(upper + h, height)
    return 0.0, 0.0, float(width), float(height)


def scored_box(width: int, height: int, crop: CropSection) -> Box:
    """The box that is scored: the central square, or the whole image."""
    if crop.center is None:
        return 0.0, 0.0, float(width), float(height)
    side = crop.center * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, min(left + side, width), min(upper + side, height)
