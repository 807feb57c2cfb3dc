"""The codebook of `space: patches`: k-means centres of a teacher's patch features, made once a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from mmkd.errors import ConfigError, TrainingError
from mmkd.vision_distill.loader import decoded
from mmkd.vision_distill.sources import LabelledImages
from mmkd.vision_distill.spaces import Patches
from mmkd.vision_distill.views import Preprocessing

FILE = "codebook.safetensors"
BATCH = 32


def fitted(space: Patches, images: LabelledImages, view: Preprocessing, seed: int, run: Path) -> Tensor:
    """The centres [M, d], of length 1; from the run folder, where they lie already. Call on one rank.

    Raises: ConfigError without scikit-learn or where there are fewer patches than codes; TrainingError for a broken
        file; DataError for an image that cannot be read.
    """
    path = run / FILE
    if path.exists():
        return read(path, space)
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ConfigError("space: patches needs scikit-learn: pip install 'mmkd[data]'.") from error
    features = torch.cat(list(patches(space, images, view)))  # [n, d]
    if len(features) < space.codes:
        raise ConfigError(
            f"space.codes is {space.codes}, and {space.images} images have {len(features)} patches: lower it, or raise "
            "space.images."
        )
    means = MiniBatchKMeans(space.codes, random_state=seed, n_init=1, batch_size=max(1024, 4 * space.codes))
    centres = normalize(torch.from_numpy(means.fit(features.numpy()).cluster_centers_).float(), dim=-1)
    partial = path.with_name(path.name + ".partial")
    save_file({"codes": centres.contiguous()}, partial)
    os.replace(partial, path)
    return centres


def read(path: Path, space: Patches) -> Tensor:
    """Raises TrainingError for a file that is broken, or another run's."""
    try:
        centres = load_file(path)["codes"]
    except (OSError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{path} is broken ({error}); remove it.") from error
    if centres.shape != (space.codes, space.width) or not centres.isfinite().all():
        raise TrainingError(f"{path} has codes of {list(centres.shape)}, wanted [{space.codes}, {space.width}].")
    return centres


def patches(space: Patches, images: LabelledImages, view: Preprocessing) -> Iterator[Tensor]:
    """Patch features [n, d], of length 1, of `space.images` whole images, spread evenly over all."""
    device = next(space.model.parameters()).device
    number = min(space.images, len(images))
    chosen = [place * len(images) // number for place in range(number)]
    for start in range(0, number, BATCH):
        pixels = [_seen(images, index, view) for index in chosen[start : start + BATCH]]
        found = space.features(torch.stack(pixels).to(device))  # [B, d, rows, columns]
        yield normalize(found.movedim(1, 3).flatten(0, 2), dim=-1).cpu()


def _seen(images: Any, index: int, view: Preprocessing) -> Tensor:
    image = decoded(images[index])
    return view(image, (0.0, 0.0, float(image.width), float(image.height)), False)
