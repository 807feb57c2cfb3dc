"""The feature cache of a run: a frozen tower sees each image once, whatever the number of epochs, stages and runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from mmkd.assets import cache
from mmkd.config.schema import Config
from mmkd.data.feature_store import FeatureStore
from mmkd.data.fill import fill
from mmkd.data.images import open_image
from mmkd.data.mixture import Mixture
from mmkd.data.rejected import BadRow
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError, DataError

MEASURED = 512  # images from which channel statistics are taken


@torch.no_grad()
def measure_channels(config: Config, composed: Any, device: torch.device) -> None:
    """Measure mean and deviation of the tower's channels on the first images of the run's data; the same on every rank.

    Raises: DataError where not one image can be read.
    """
    tower = composed.model.vision_tower.to(device).eval()
    standardize, tower.standardize = tower.standardize, None
    sources = [open_source(section, at=f"data.mixture[{i}]") for i, section in enumerate(config.data.mixture)]
    mixture = Mixture(sources, [section.weight for section in config.data.mixture], config.run.seed)
    found: list[torch.Tensor] = []
    for index in range(4 * MEASURED):
        try:
            for image in mixture[index].images[: MEASURED - len(found)]:
                pixels, _ = composed.processor.image_tensors([open_image(image)])
                found.append(tower(pixels.to(device)).flatten(0, 1))  # [tiles * N, C]
        except BadRow:
            continue
        if len(found) == MEASURED:
            break
    if not found:
        raise DataError(f"none of the first {4 * MEASURED} rows has an image that can be read; see data.mixture.")
    tower.standardize = standardize
    standardize.measure(torch.cat(found))


def tower_hash(model: Any, fingerprint: str) -> str:
    """Of everything that turns an image into tower features: configuration, weights, and image processing."""
    settings = {key: value for key, value in model.config.vision_config.to_dict().items() if key != "dtype"}
    digest = hashlib.sha256(f"{fingerprint} {json.dumps(settings, sort_keys=True)}".encode())
    for name, tensor in sorted(model.vision_tower.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(
            f"{name} {tuple(data.shape)} {data.dtype}".encode() + data.flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def cached_features(
    config: Config, composed: Any, teacher: Any, device: torch.device, rank: int, world: int
) -> FeatureStore:
    """The filled store of the student's tower, below the cache folder, where every run with that tower finds it.

    All ranks call it and share the work.

    Raises: ConfigError where the teacher sees images through another tower, or the data is streamed.
    """
    model, processor = composed.model, composed.processor
    found = tower_hash(model, processor.fingerprint)
    other = getattr(teacher, "model", None)
    if other is not None and tower_hash(other, teacher.processor.fingerprint) != found:
        raise ConfigError(
            "data.cache_features keeps features of one tower, and the teacher's tower or image processing differs from "
            "the student's; switch it off."
        )
    store = FeatureStore(cache() / "features", found, model.dtype)
    sources = [open_source(section, at=f"data.mixture[{i}]") for i, section in enumerate(config.data.mixture)]
    tower = model.vision_tower.to(device).eval()
    with tqdm(desc="Vision features", unit=" images", disable=rank != 0, mininterval=2) as progress:
        for done in fill(
            store, sources, processor, lambda pixels: tower(pixels.to(device)), rank=rank, world_size=world
        ):
            progress.update(done * world - progress.n)
    dist.barrier()
    store.refresh()
    return store
