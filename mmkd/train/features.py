"""The feature cache of a run: a frozen tower sees each image once, whatever the number of epochs, stages and runs."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from mmkd.assets import cache
from mmkd.config.schema import Config
from mmkd.data.feature_store import FeatureStore
from mmkd.data.fill import fill
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError


def tower_hash(model: Any, fingerprint: str) -> str:
    """Of everything that turns an image into tower features: configuration, weights, and image processing."""
    digest = hashlib.sha256(f"{fingerprint} {model.config.vision_config.to_json_string()}".encode())
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
