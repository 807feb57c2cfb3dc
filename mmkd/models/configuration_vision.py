"""The record from which a vision tower is rebuilt, with no network and without the adapter that first made it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class MmkdVisionConfig(PreTrainedConfig):
    """What a vision tower is.

    Attributes:
        library: "timm", "open_clip" or "transformers": whose module it is.
        architecture: the model's name in timm or open_clip, or the `model_type` in transformers.
        architecture_config: all that rebuilds the module: keyword arguments of `timm.create_model`, open_clip's model
            configuration (`embed_dim`, `vision_cfg`, `quick_gelu`), or the transformers sub-config.
        taps: stages (CNN, counted from 0) or layers (ViT, counted as hidden states, the embeddings being number 0)
            to read; negative from the end. None is the last stage (CNN) or the penultimate layer (ViT).
        grid: [rows, cols] to which every tapped map is average-pooled; None keeps that of the deepest tap.
        standardize: bring every channel to mean 0 and deviation 1, as measured on training images.
        image_size: side in pixels for which `rows` and `cols` hold.
        hidden_size: output channels, summed over taps. Derived: the tower fills it in.
        rows: rows of the output grid of an image_size x image_size image. Derived, as `cols`.
        cols: its columns.
    """

    model_type = "mmkd_vision"
    base_config_key = "vision_config"

    library: str = "timm"
    architecture: str = ""
    architecture_config: dict[str, Any] | None = None
    taps: list[int] | None = None
    grid: list[int] | None = None
    standardize: bool = False
    image_size: int = 224
    hidden_size: int = 0
    rows: int = 0
    cols: int = 0
