"""Top-1 accuracy of a classifier on the test images of a config."""

from __future__ import annotations

from typing import Any

import torch

from mmkd.config.vision_schema import VisionConfig
from mmkd.contracts import ClassifierParts
from mmkd.errors import ConfigError
from mmkd.precision import on_cpu
from mmkd.vision_distill.classifiers import check_classes, preprocessing
from mmkd.vision_distill.loader import scored_batches
from mmkd.vision_distill.sources import open_images

BATCH = 64


@torch.no_grad()
def top1(config: VisionConfig, parts: ClassifierParts, name: str) -> dict[str, Any]:
    """Share of test images whose class gets the largest logit, and how many images there are.

    Raises: ConfigError where there is no test set, or it has other classes; DataError for a broken image.
    """
    if config.data.test is None:
        raise ConfigError("config: data.test is missing; scores need it.")
    images = open_images(config.data.test, at="data.test", config=config)
    check_classes(parts, images.classes, name)
    device = torch.device("cpu" if on_cpu(config.training.device) else "cuda")
    model = parts.model.eval().to(device)
    correct = 0
    for batch in scored_batches(images, {"pixels": preprocessing(parts)}, config.data.crop, BATCH):
        best = model(batch["pixels"].to(device)).argmax(-1)
        correct += int((best == batch["labels"].to(device)).sum())
    return {"top1": correct / len(images), "images": len(images)}
