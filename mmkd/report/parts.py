"""The parts of a model folder, from its config alone: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmkd.compose import parts
from mmkd.models.configuration_mmkd import MmkdConfig
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration


@dataclass
class Part:
    name: str
    source: str
    license: str
    parameters: int
    trained: str


def model_parts(folder: Path, stages: list[dict[str, Any]]) -> list[Part]:
    """Each part of a model, its size, and in which stages it was trained.

    Args:
        stages: of the run's config.

    Raises: OSError or ValueError where the folder holds no mmkd model.
    """
    config = MmkdConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = MmkdForConditionalGeneration(config)
    model.tie_weights()
    sources = getattr(config, "parts", None) or {}
    made = {"projector": config.projector.get("kind", ""), "voco": f"{config.voco_tokens} tokens an image"}
    found = []
    for name, parameters in parts(model).items():
        origin = sources.get("language" if name == "embeddings" else name) or {}
        trained = [str(stage.get("name", "")) for stage in stages if name in (stage.get("trainable") or [])]
        found.append(
            Part(
                name,
                str(origin.get("source") or made.get(name, "")),
                str(origin.get("license") or ""),
                sum(p.numel() for p in parameters),
                ", ".join(trained) or "frozen",
            )
        )
    return found
