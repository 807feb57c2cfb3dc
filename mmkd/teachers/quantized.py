"""A live teacher in 8 or 4 bits, by bitsandbytes, on a GPU or a CPU."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from mmkd.bits import make_safe_4bit, quiet_bitsandbytes
from mmkd.compose import Composed, load

# The vision side and the head stay as they are: few of a teacher's weights.
KEPT = ["vision_tower", "projector", "lm_head", "embed_out"]


def load_quantized(model: str, kind: str, dtype: torch.dtype, device: torch.device) -> Composed:
    """A composed model whose decoder layers are quantised as they are read.

    Args:
        kind: nf4 (4 bits, with the scales quantised too) or int8 (LLM.int8).
        dtype: of all else, and of what 4-bit layers compute in.

    Raises: ConfigError for nf4 on a CPU where a layer's width is no multiple of 64; see `make_safe_4bit`.
    """
    quiet_bitsandbytes()
    options: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["bnb_4bit_compute_dtype"] = dtype
    composed = load(model, dtype, BitsAndBytesConfig(**options, llm_int8_skip_modules=KEPT), device)
    make_safe_4bit(composed.model, device, f"teacher.quantize nf4 of {model}", "Use int8.")
    return composed
