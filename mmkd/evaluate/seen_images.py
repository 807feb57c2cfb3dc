"""The images of a window of questions, each looked at once: as a VoCo cache, or as features of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmkd.evaluate.loading import Loaded
from mmkd.models.voco_cache import VocoCache

IMAGES_PER_PASS = 64


@dataclass
class Compressed:
    """Images as one VoCoCache, and the number of each."""

    cache: VocoCache
    number: dict[str, int]

    def for_processor(self, keys: list[str]) -> dict[str, Any]:
        return {}

    def for_generate(self, keys: list[str]) -> dict[str, Any]:
        """These images in this order, repeats included."""
        return {"voco_cache": self.cache.select([self.number[key] for key in keys])}


@dataclass
class Features:
    """Tower features [tiles, N, D_v] of each image: only the decoder reads them anew for each question."""

    of: dict[str, Tensor]

    def for_processor(self, keys: list[str]) -> dict[str, Any]:
        return {"image_tiles": [len(self.of[key]) for key in keys]}

    def for_generate(self, keys: list[str]) -> dict[str, Any]:
        return {"tower_features": torch.cat([self.of[key] for key in keys])}


def look_at(loaded: Loaded, images: dict[str, Image.Image], tokens: int | None) -> Compressed | Features:
    """Every image once, in passes of IMAGES_PER_PASS: compressed to `tokens`, or its tower features where None."""
    keys, caches, features = list(images), [], {}
    device, dtype = loaded.model.device, loaded.model.dtype
    for start in range(0, len(keys), IMAGES_PER_PASS):
        part = keys[start : start + IMAGES_PER_PASS]
        pixels, tiles = loaded.processor.image_tensors([images[key] for key in part])
        pixels = pixels.to(device, dtype)
        if tokens is None:
            features |= zip(part, loaded.model.vision_tower(pixels).split(tiles), strict=True)
        else:
            counts = torch.tensor(tiles, device=device)
            caches.append(loaded.model.compress(pixels, image_tiles=counts, tokens=tokens))
    if tokens is None:
        return Features(features)
    return Compressed(VocoCache.join(caches), {key: i for i, key in enumerate(keys)})
