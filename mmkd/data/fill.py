"""Filling a feature store before training, so that a frozen tower sees each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from mmkd.data.collate import Processor
from mmkd.data.feature_store import FeatureStore, image_key
from mmkd.data.hub import Stream
from mmkd.data.images import open_image
from mmkd.data.rejected import BadRow
from mmkd.data.sources import Source
from mmkd.errors import ConfigError


def fill(
    store: FeatureStore,
    sources: Sequence[Source],
    processor: Processor,
    tower: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 64,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[int]:
    """Compute and keep the features of every image that the store lacks; yields the images done after each batch.

    Each rank takes every world_size-th image. Killed, it goes on with what is missing. Images that cannot be read are
    passed over here; their rows are set aside when training meets them.

    Args:
        tower: pixel values [tiles, 3, H, W] -> features [tiles, n, D]; moves to its own device, keeps no gradient.

    Raises: ConfigError for a streaming source, whose images cannot be known beforehand.
    """
    if any(isinstance(source, Stream) for source in sources):
        raise ConfigError("data.cache_features needs all images beforehand; switch streaming off in data.mixture.")
    images = islice(_images(sources), rank, None, world_size)
    done = 0
    while batch := dict(islice(images, batch_size)):
        keys, pixels, tiles = [], [], []
        for key in store.missing(batch):
            try:
                values, counts = processor.image_tensors([open_image(batch[key])])
            except BadRow:
                continue
            keys.append(key)
            pixels.append(values)
            tiles += counts
        if keys:
            with torch.no_grad():
                store.put(keys, tower(torch.cat(pixels)), tiles)
        done += len(batch)
        yield done


def _images(sources: Iterable[Sequence]) -> Iterator[tuple[str, str | bytes]]:
    """(key, image) of every different image, in the sources' order."""
    paths: set[str] = set()
    keys: set[str] = set()
    for source in sources:
        for row in range(len(source)):
            try:
                images = source[row].images
                fresh = [image for image in images if isinstance(image, bytes) or image not in paths]
                paths.update(image for image in fresh if isinstance(image, str))
                found = [(image_key(image), image) for image in fresh]
            except BadRow:
                continue
            for key, image in found:
                if key not in keys:
                    keys.add(key)
                    yield key, image
