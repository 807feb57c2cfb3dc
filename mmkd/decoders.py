"""What is known of a decoder before its weights are loaded: by its folder's config.json, and what a cut keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mmkd.config.schema import Keep, StudentSection
from mmkd.errors import ConfigError
from mmkd.models.attention_capture import AttentionShape
from mmkd.models.configuration_mmkd import MmkdConfig
from mmkd.models.parts import BESIDE_HEAD


def text_config(model: str | Path | None) -> Any | None:
    """The decoder's config of a composed model's folder; None where only loading tells: a hub id, or no such folder."""
    if model is None or not (Path(model) / "config.json").is_file():
        return None
    try:
        return MmkdConfig.from_pretrained(model).text_config
    except (OSError, ValueError, KeyError, TypeError):  # loading says better what is wrong with it
        return None


def kept_layers(keep: Keep | None, total: int) -> list[int]:
    """Which of `total` layers a cut keeps: the first n, every n-th (0, n, 2n ..), those listed, or all.

    Raises: ConfigError where one is missing or named twice.
    """
    if keep is None:
        return list(range(total))
    if isinstance(keep, str):
        kept = list(range(0, total, int(keep.removeprefix("every "))))
    else:
        kept = list(range(keep)) if isinstance(keep, int) else list(keep)
    if not kept or min(kept) < 0 or max(kept) >= total:
        raise ConfigError(f"keep_layers {keep}: this decoder has layers 0..{total - 1}.")
    if len(set(kept)) < len(kept):
        raise ConfigError(f"keep_layers {keep} names a layer twice, and both would be one; name each once.")
    return kept


def student_layers(student: StudentSection) -> int | None:
    """Decoder layers of a student after its cut; None where only loading tells.

    Raises: ConfigError for a cut that the decoder in `init` does not have.
    """
    keep = student.keep_layers if student.language is None else student.language.keep_layers
    config = text_config(student.init)
    if config is not None:
        return len(kept_layers(keep, config.num_hidden_layers))
    if isinstance(keep, list):
        return len(keep)
    return keep if isinstance(keep, int) else None


def attention_shape(config: Any) -> AttentionShape | None:
    """Of every layer of a decoder that writes its heads as Llama does; None for others, which only capturing tells."""
    shared = getattr(config, "num_key_value_heads", None)
    # Latent attention has other widths than its config names; layers may differ, by a list of heads or as in Gemma 4.
    if not isinstance(shared, int) or any(hasattr(config, other) for other in ("kv_lora_rank", "global_head_dim")):
        return None
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return AttentionShape(heads, shared, width, width)


def input_widths(config: Any) -> dict[str, int]:
    """What the linear layers of a decoder read, by the names of its config; those that it names."""
    widths = {"hidden_size": config.hidden_size}
    if (inner := getattr(config, "intermediate_size", None)) is not None:
        widths["intermediate_size"] = inner
    if (shape := attention_shape(config)) is not None:
        widths["num_attention_heads x head_dim"] = shape.heads * shape.value_width
    return widths


def beside_product(config: Any) -> str | None:
    """What a decoder's head does beside the product with its weight; None where that is all."""
    found = next((name for name in BESIDE_HEAD if getattr(config, name, None) is not None), None)
    if found is None:
        with torch.device("meta"):
            head = AutoModelForCausalLM.from_config(config).get_output_embeddings()
        found = "bias" if getattr(head, "bias", None) is not None else None
    return found
