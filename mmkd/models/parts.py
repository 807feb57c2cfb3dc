"""The parts of the model: vision tower, projector, decoder, compression tokens; and from images to vision tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init

from .configuration_mmkd import MmkdConfig
from .projector import build_projector
from .vision_tower import VisionTower
from .voco import CompressionTokens

BESIDE_HEAD = ("final_logit_softcapping", "logit_scale", "lm_head_multiplier", "logits_scaling")  # see `scaled`


class MmkdPreTrainedModel(PreTrainedModel):
    """What the passes of the model stand on."""

    config_class = MmkdConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MmkdConfig):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = VisionTower(vision)
        self.projector = build_projector(
            config.projector, vision.hidden_size, text.hidden_size, rows=vision.rows, cols=vision.cols
        )
        self.language_model = AutoModelForCausalLM.from_config(text)
        self.voco = None
        if config.voco:
            self.voco = CompressionTokens(
                config.voco["tokens"],
                text.hidden_size,
                config.voco.get("embeddings", "separate"),
                config.voco.get("mass_bias", False),
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CompressionTokens) and module.bias is not None:
            init.zeros_(module.bias.weight)

    @property
    def decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [.., V] of hidden states [.., D], with the decoder's own soft cap and scale."""
        return self.scaled(self.get_output_embeddings()(hidden))

    def scaled(self, logits: Tensor) -> Tensor:
        """What the decoder makes of its head's product [.., V]."""
        text = self.config.text_config
        if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        if (scale := getattr(text, "logit_scale", None)) is not None:
            logits = logits * scale
        if (factor := getattr(text, "lm_head_multiplier", None)) is not None:
            logits = logits * factor
        if (by := getattr(text, "logits_scaling", None)) is not None:  # HyperCLOVA X multiplies where Granite divides
            logits = logits * by if text.model_type == "hyperclovax" else logits / by
        return logits

    def image_features(self, pixel_values: Tensor | None = None, tower_features: Tensor | None = None) -> Tensor:
        """Projected vision tokens [tiles, n, D] of pixels [tiles, 3, H, W] or of tower features [tiles, N, D_v]."""
        if tower_features is None:
            tower_features = self.tower_features(pixel_values)
        return self.projector(tower_features.to(self.dtype))

    def tower_features(self, pixel_values: Tensor | None) -> Tensor:
        """What the vision tower makes of pixels [tiles, 3, H, W]: [tiles, N, D_v], row-major."""
        if pixel_values is None:
            raise ValueError("image_features needs pixel_values or tower_features.")
        return self.vision_tower(pixel_values.to(self.dtype))


__all__ = ["MmkdPreTrainedModel"]
