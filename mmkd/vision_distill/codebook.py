"""The codebook of `space: patches`: k-means centres of a teacher's patch features, made once a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError, TrainingError
from mmkd.vision_distill.loader import decoded
from mmkd.vision_distill.sources import LabelledImages
from mmkd.vision_distill.spaces import Patches
from mmkd.vision_distill.views import Preprocessing

FILE = "codebook.safetensors"
ORIGIN = "made_of"
BATCH = 32


def fitted(
    space: Patches, images: LabelledImages, view: Preprocessing, seed: int, run: Path, teacher: dict[str, Any]
) -> Tensor:
    """The centres [M, d], of length 1; from the run folder, where they lie already. Call on one rank.

    Args:
        teacher: the section of the config, by which a codebook of another one is known.

    Raises: ConfigError without scikit-learn or where there are fewer patches than codes; TrainingError for a file that
        is broken or of something else.
    """
    path, made_of = run / FILE, {"teacher": teacher, "space.images": space.images}
    if path.exists():
        return read(path, space, made_of)
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ConfigError("space: patches needs scikit-learn: pip install 'mmkd[data]'.") from error
    found = list(patches(space, images, view))
    features = torch.cat(found) if found else torch.empty(0, space.width)  # [n, d]
    if len(features) < space.codes:
        raise ConfigError(
            f"space.codes is {space.codes}, and {space.images} images have {len(features)} patches: lower it, or raise "
            "space.images."
        )
    means = MiniBatchKMeans(space.codes, random_state=seed, n_init=1, batch_size=max(1024, 4 * space.codes))
    centres = normalize(torch.from_numpy(means.fit(features.numpy()).cluster_centers_).float(), dim=-1)
    partial = path.with_name(path.name + ".partial")
    save_file({"codes": centres.contiguous()}, partial, {ORIGIN: json.dumps(made_of)})
    os.replace(partial, path)
    return centres


def read(path: Path, space: Patches, made_of: dict[str, Any]) -> Tensor:
    """Raises TrainingError for a file that is broken, or of another teacher or number of images."""
    try:
        with safe_open(path, "pt") as file:
            centres, before = file.get_tensor("codes"), json.loads((file.metadata() or {}).get(ORIGIN, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{path} is broken ({error}); remove it.") from error
    for key in sorted(before.keys() & made_of.keys()):
        if before[key] != made_of[key]:
            raise TrainingError(
                f"{path} was made with {key} {before[key]}, and now it is {made_of[key]}: the student's heads have "
                "learned those codes. Put it back, or name another run.dir."
            )
    if centres.shape != (space.codes, space.width) or not centres.isfinite().all():
        raise TrainingError(f"{path} has codes of {list(centres.shape)}, wanted [{space.codes}, {space.width}].")
    return centres


def patches(space: Patches, images: LabelledImages, view: Preprocessing) -> Iterator[Tensor]:
    """Patch features [n, d], of length 1, of `space.images` whole images, spread evenly over all; bad ones are left to
    training, which sets them aside."""
    device = next(space.model.parameters()).device
    number = min(space.images, len(images))
    chosen = [place * len(images) // number for place in range(number)]
    for start in range(0, number, BATCH):
        pixels = list(_seen(images, chosen[start : start + BATCH], view))
        if not pixels:
            continue
        found = space.features(torch.stack(pixels).to(device))  # [B, d, rows, columns]
        yield normalize(found.movedim(1, 3).flatten(0, 2), dim=-1).cpu()


def _seen(images: Any, indices: list[int], view: Preprocessing) -> Iterator[Tensor]:
    for index in indices:
        with suppress(BadRow):
            image = decoded(images[index])
            yield view(image, (0.0, 0.0, float(image.width), float(image.height)), False)
