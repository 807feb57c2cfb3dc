"""Decoders of transformers: `hf:FOLDER_OR_HUB_ID`, whatever `AutoModelForCausalLM` loads and honours a Cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mmkd.contracts import LanguageParts, Spec
from mmkd.errors import ConfigError

from ..sources import UNREADABLE, card_license, not_found, require_all


class HfLanguageAdapter:
    """A decoder and its tokenizer, in fp32."""

    def load(self, spec: Spec, *, pretrained: bool = True) -> LanguageParts:
        """See `mmkd.contracts.LanguageAdapter`. ConfigError: no decoder with a Cache; AssetError: nothing to load."""
        return load_folder(spec, spec.name, pretrained, card_license(spec.name, spec.revision))

    def tokenizer(self, spec: Spec) -> PreTrainedTokenizerBase:
        """See `mmkd.contracts.LanguageAdapter`. AssetError: nothing to load."""
        return load_tokenizer(spec, spec.name)


def load_folder(spec: Spec, name: str, pretrained: bool, license: str) -> LanguageParts:
    """Model and tokenizer of the folder or hub id `name`; `spec` is what errors call it."""
    try:
        config = AutoConfig.from_pretrained(name, revision=spec.revision)
        require_plain_decoder(spec, config)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=spec.revision)
        if pretrained:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, revision=spec.revision, dtype=torch.float32, output_loading_info=True
            )
            model, info = loaded
            require_all(spec, info)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except UNREADABLE as error:
        raise not_found(spec, error) from error
    return LanguageParts(model.eval(), tokenizer, license)


def load_tokenizer(spec: Spec, name: str) -> PreTrainedTokenizerBase:
    """As `load_folder`, the tokenizer alone."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=spec.revision)
    except UNREADABLE as error:
        raise not_found(spec, error) from error


# Scales of logits beside those of `MmkdPreTrainedModel.head`; and families that read `logits_scaling` otherwise.
SCALES = ("lm_head_multiplier", "output_multiplier")
OTHER_SCALES = ("hyperclovax", "minicpm3")


def require_plain_decoder(spec: Spec, config: Any) -> None:
    """ConfigError unless models of `config` are decoders that keep keys and values in a Cache, and whose logits are the
    head's product under scales that are known. Reads no weight."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(
            f"{spec} is a {config.model_type} model; AutoModelForCausalLM has no decoder for it."
        ) from error
    # A recurrent state, unlike keys and values, cannot be cut out of the middle of a prompt and carried over.
    if model._is_stateful or "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"{spec} is a {config.model_type} model, which does not keep its past in a transformers Cache of keys and "
            "values; mmkd carries images over in one. Use a plain decoder (Llama, Qwen, Mistral, Gemma, Phi, GPT-2 ..)."
        )
    scaled = [name for name in SCALES if getattr(config, name, None) is not None]
    if config.model_type in OTHER_SCALES or scaled:
        raise ConfigError(
            f"{spec} is a {config.model_type} model, which scales its logits in a way of its own "
            f"({', '.join(scaled) or 'logits_scaling'}) that mmkd's losses do not know. Use a plain decoder (Llama, "
            "Qwen, Mistral, Gemma, Phi, Granite, Cohere ..)."
        )
