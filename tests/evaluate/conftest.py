"""A tiny random model on disk, and questions with pictures for it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mmkd.models import MmkdConfig, MmkdForConditionalGeneration, MmkdProcessor
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer

SIDE = 32


def tiny_model(tokens: int | None) -> tuple[MmkdForConditionalGeneration, MmkdProcessor]:
    tokenizer = byte_tokenizer(image=True)
    images = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = MmkdProcessor(
        images, tokenizer, chat_template=chat_template("qa", tokenizer), image_tokens=4, voco_tokens=tokens
    )
    config = MmkdConfig(
        vision_config=MmkdVisionConfig(library="timm", architecture="test_efficientnet", grid=[2, 2], image_size=SIDE),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,  # wide: different pictures get different answers
        ),
        voco={"tokens": tokens, "preset": "keep_sink", "embeddings": "separate", "mass_bias": False}
        if tokens
        else None,
        image_token_id=processor.image_token_id,
        sink_token_id=tokenizer.bos_token_id,
        image_tokens=4,
        processor_hash=processor.fingerprint,
    )
    torch.manual_seed(0)
    model = MmkdForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """An mmkd model with K = 4 compression tokens, saved."""
    path = tmp_path_factory.mktemp("tiny")
    model, processor = tiny_model(4)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def stock_llava(tmp_path_factory) -> str:
    """A tiny random LLaVA of transformers, saved."""
    path = tmp_path_factory.mktemp("llava")
    tokenizer = byte_tokenizer(image=True)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, image_token_id=image_token
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("qa", tokenizer),
    )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)
