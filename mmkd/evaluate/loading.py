"""Loading a model to be scored: an mmkd folder with mmkd's own classes, any other with transformers' Auto classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from mmkd import compose
from mmkd.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Loaded:
    """A model ready to answer.

    Attributes:
        ours: whether it is an mmkd model, whose processor takes voco_tokens.
        most_tokens: K, 0 without compression.
        image_token_id: placeholder in input_ids; None where the model has none.
        ends: ids that end an answer.
        generation: what every `generate` call is given.
    """

    name: str
    model: Any
    processor: Any
    ours: bool
    most_tokens: int
    image_token_id: int | None
    ends: frozenset[int]
    generation: dict[str, Any]


def load(pretrained: str, dtype: str | None, device: torch.device, trust_remote_code: bool) -> Loaded:
    """Load model and processor for evaluation.

    Raises: ConfigError where there is no such model, or an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype}: choose one of {', '.join(DTYPES)}.")
    try:
        settings, _ = PreTrainedConfig.get_config_dict(pretrained)
    except OSError as error:
        raise ConfigError(f"pretrained={pretrained}: no model there ({error}).") from error
    if not settings:
        raise ConfigError(f"pretrained={pretrained}: no config.json there; give the folder of a model.")
    ours = settings.get("model_type") == "mmkd"
    # An mmkd folder carries its own code, but the installed mmkd reads it as well: nothing remote is run.
    chosen = dtype or ("float32" if device.type == "cpu" else "auto")
    if ours:
        composed = compose.load(pretrained, chosen)
        model, processor = composed.model, composed.processor
    else:
        model, processor = _of_another_library(pretrained, chosen, trust_remote_code)
    model.to(device).eval()
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = compose.answer_ends(model, tokenizer)
    return Loaded(
        name=pretrained,
        model=model,
        processor=processor,
        ours=ours,
        most_tokens=model.config.voco_tokens if ours else 0,
        image_token_id=settings.get("image_token_id", settings.get("image_token_index")),
        ends=frozenset(ends),
        # Among a decoder's own settings a penalty would punish the words of the question, and beams multiply the work.
        generation={
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": ends,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
        },
    )


def _of_another_library(pretrained: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and processor by transformers' Auto classes."""
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            pretrained, dtype=dtype, trust_remote_code=trust_remote_code
        )
        return model, AutoProcessor.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
    except compose.BROKEN_FOLDER as error:
        raise ConfigError(f"pretrained={pretrained}: not a whole image-text-to-text model: {error}") from error
