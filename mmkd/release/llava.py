"""A full-vision student as stock LLaVA, which transformers, and what builds on it, serve without code of ours.

The cut tower becomes a vision model with fewer layers, read at its last hidden state. Same function, other names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from mmkd.errors import ReleaseError
from mmkd.models import MmkdForConditionalGeneration, MmkdProcessor

# model_type of the tower -> which of its tokens LLaVA takes, and how many stand before the patches
TOWERS = {"clip_vision_model": ("default", 1), "siglip_vision_model": ("full", 0)}
DECODERS = ("llama", "mistral", "qwen2")


def to_llava(
    model: MmkdForConditionalGeneration, processor: MmkdProcessor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The same model, sharing its weights, and processor of transformers.

    Raises: ReleaseError naming everything about the model that stock LLaVA has no place for.
    """
    refuse_what_does_not_fit(model, processor)
    vision = vision_config(model)
    strategy, prefix = TOWERS[vision.model_type]
    taps = model.vision_tower.trunk.taps
    config = LlavaConfig(
        vision_config=vision,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.config.image_tokens,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1 if len(taps) == 1 else list(taps),
        tie_word_embeddings=model.config.tie_word_embeddings,
        dtype=model.dtype,
    )
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config)
    stock.load_state_dict(stock_names(model, stock), strict=True, assign=True)
    stock.tie_weights()
    stock.generation_config = model.generation_config
    stock_processor = LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=prefix,
    )
    return stock, stock_processor


def refuse_what_does_not_fit(model: MmkdForConditionalGeneration, processor: MmkdProcessor) -> None:
    config, vision, text = model.config, model.config.vision_config, model.config.text_config
    details, projector = vision.architecture_config or {}, config.projector
    tower = f"{vision.library}:{vision.architecture}"
    kind, layers = projector.get("kind"), projector.get("layers")
    grid = " x ".join(map(str, vision.grid or []))
    reasons = {
        "it reads images through compression tokens (student.voco)": bool(config.voco),
        f"its vision tower is {tower}, not CLIP or SigLIP of transformers": vision.architecture not in TOWERS,
        f"its projector is {kind} of {layers} layers, not an mlp of 2 layers": (kind, layers) != ("mlp", 2),
        f"its decoder is {text.model_type}, not one of {', '.join(DECODERS)}": text.model_type not in DECODERS,
        f"its features are pooled to a grid of {grid}": vision.grid is not None,
        "its features are standardized": vision.standardize,
        f"images are cut into up to {processor.tiles} tiles": processor.tiles > 1,
    }
    if vision.architecture in TOWERS:
        own = model.vision_tower.trunk.model.config.image_size
        reasons[f"images are {vision.image_size} pixels wide, the tower was made for {own}"] = own != vision.image_size
        reasons["its tower has a patch size that is not square"] = not isinstance(details.get("patch_size", 0), int)
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ReleaseError(
            f"this model cannot be stock LLaVA: {'; '.join(found)}. "
            "Release it with --format mmkd, which takes any model."
        )


def vision_config(model: MmkdForConditionalGeneration) -> Any:
    """The tower's own config with as many layers as were kept, and without a pooling head."""
    trunk = model.vision_tower.trunk
    details = trunk.model.config.to_diff_dict() | {"num_hidden_layers": trunk.taps[-1]}
    if details["model_type"] == "siglip_vision_model":
        details["vision_use_head"] = False
    return AutoConfig.for_model(details.pop("model_type"), **details)


def stock_names(model: MmkdForConditionalGeneration, stock: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The student's tensors under LLaVA's names. The final norm of the tower, which patch features never meet and the
    student does not keep, is the neutral one."""
    tower = model.vision_tower.trunk.model.state_dict()
    tower.pop("embeddings.position_ids", None)  # a buffer that stock models count anew
    found = {f"model.vision_tower.{name}": tensor for name, tensor in tower.items()}
    found |= {f"model.multi_modal_projector.{n}": t for n, t in model.projector.state_dict().items()}
    for name, tensor in model.language_model.state_dict().items():
        inside = name.startswith("model.")
        found[f"model.language_model.{name.removeprefix('model.')}" if inside else name] = tensor
    for name, tensor in stock.state_dict().items():
        if ".post_layernorm." in name:
            neutral = torch.ones if name.endswith("weight") else torch.zeros
            found[name] = neutral(tensor.shape, dtype=model.dtype)
    return found
