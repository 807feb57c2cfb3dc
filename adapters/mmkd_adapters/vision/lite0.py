"""EfficientNet-Lite0 as its package publishes it, renamed to timm's `tf_efficientnet_lite0`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the published names number them through
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Stage 0 has no expansion, so timm's names of its parts are shifted.
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def read_published_lite0(path: Path) -> dict[str, Tensor]:
    """The published file as a state dict for timm's whole model, classifier included."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in state.items()}


def timm_name(name: str) -> str:
    """`_blocks.3._bn0.weight` -> `blocks.2.0.bn1.weight`."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        part, _, leaf = name.partition(".")
        return f"{OUTSIDE[part]}.{leaf}"
    place, part, leaf = int(block[1]), block[2], block[3]
    stage = 0
    while place >= REPEATS[stage]:
        place -= REPEATS[stage]
        stage += 1
    return f"blocks.{stage}.{place}.{(OTHERS if stage else FIRST)[part]}.{leaf}"
