"""Configuration of an mmkd vision-language model. Copied into every release."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .configuration_vision import MmkdVisionConfig


class MmkdConfig(PreTrainedConfig):
    """A vision tower, a projector, a decoder, and optionally VoCo compression tokens.

    Args:
        vision_config: how to rebuild the vision tower.
        text_config: any decoder configuration that transformers knows.
        projector: `kind` and its options, as `build_projector` takes them.
        voco: None for a model without compression, else
            `tokens`: K, the most compression tokens an image may be read as;
            `preset`: "keep_sink" (text sees the first token) or "faithful" (text sees the compression tokens only);
            `embeddings`: "separate" or "shared" between the K tokens;
            `mass_bias`: learn one bias per compression token, added to the attention scores of its column.
        image_token_id: placeholder of an image position in `input_ids`.
        sink_token_id: the token that stands before every image; the attention sink.
        image_tokens: full-vision tokens of one tile, after the projector.
    """

    model_type = "mmkd"
    sub_configs: ClassVar[Any] = {"vision_config": MmkdVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | MmkdVisionConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        projector: dict[str, Any] | None = None,
        voco: dict[str, Any] | None = None,
        image_token_id: int = 0,
        sink_token_id: int = 1,
        image_tokens: int = 0,
        **kwargs: Any,
    ):
        if isinstance(vision_config, dict):
            vision_config = MmkdVisionConfig(**{k: v for k, v in vision_config.items() if k != "model_type"})
        if isinstance(text_config, dict):
            text = dict(text_config)
            text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        self.vision_config = vision_config if vision_config is not None else MmkdVisionConfig()
        self.text_config = text_config
        self.projector = projector or {"kind": "mlp", "layers": 2}
        self.voco = voco
        self.image_token_id = image_token_id
        self.sink_token_id = sink_token_id
        self.image_tokens = image_tokens
        if text_config is not None:
            kwargs.setdefault("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)

    @property
    def voco_tokens(self) -> int:
        """K, or 0 for a model without compression."""
        return int(self.voco["tokens"]) if self.voco else 0

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size


__all__ = ["MmkdConfig"]
