"""A live teacher in 8 or 4 bits, by bitsandbytes, on a GPU or a CPU."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from mmkd.compose import Composed, load
from mmkd.errors import ConfigError

BLOCK = 64  # weights that share a scale
# The vision side and the head stay as they are: few of a teacher's weights.
KEPT = ["vision_tower", "projector", "lm_head", "embed_out"]


def require_bitsandbytes() -> None:
    """Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("teacher.quantize needs bitsandbytes: pip install 'mmkd[quant]'.")


def load_quantized(model: str, kind: str, dtype: torch.dtype, device: torch.device) -> Composed:
    """A composed model whose decoder layers are quantised as they are read.

    Args:
        kind: nf4 (4 bits, with the scales quantised too) or int8 (LLM.int8).
        dtype: of all else, and of what 4-bit layers compute in.

    Raises: ConfigError for nf4 on a CPU where a layer's width is no multiple of 64: bitsandbytes (0.50) restores such
        weights wrongly there, with no word.
    """
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)  # notices of a missing kernel and of casts, a line a layer
    options: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["bnb_4bit_compute_dtype"] = dtype
    composed = load(model, dtype, BitsAndBytesConfig(**options, llm_int8_skip_modules=KEPT), device)
    from bitsandbytes.nn import Linear4bit

    for name, module in composed.model.named_modules():
        if isinstance(module, Linear4bit):
            if device.type == "cpu" and module.in_features % BLOCK:
                raise ConfigError(
                    f"teacher.quantize nf4: {name} of {model} is {module.in_features} wide, and on a CPU bitsandbytes "
                    f"reads 4-bit weights rightly only where that is a multiple of {BLOCK}. Use int8."
                )
            # Some CPUs would repack the weight at the first forward, and saving it then gives another weight.
            module.support_avx512bf16_for_cpu = False
    return composed
