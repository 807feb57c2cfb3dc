"""A tiny random model with compression tokens, on disk; the Reader that answers with it; pictures."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from mmkd.compose import compose
from mmkd.config.schema import StudentSection
from mmkd.inference.reader import Reader

MOST_POSITIONS = 160


@pytest.fixture(scope="session")
def language(tmp_path_factory, byte_tokenizer) -> str:
    """Folder of a tiny Llama with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("language")
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MOST_POSITIONS,
        initializer_range=0.3,
        bos_token_id=byte_tokenizer.bos_token_id,
        eos_token_id=byte_tokenizer.eos_token_id,
        pad_token_id=byte_tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    byte_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory, language) -> Callable[[int | None], str]:
    """`make_model(K)`: the folder of a model that reads 4 vision tokens an image, or up to K compression tokens."""

    def make(tokens: int | None) -> str:
        path = tmp_path_factory.mktemp("model")
        section = {
            "vision": {"source": "timm:test_efficientnet", "pretrained": False, "image_size": 32, "grid": [2, 2]},
            "language": {"source": f"hf:{language}"},
            "template": "qa",
            "voco": {"tokens": tokens} if tokens else None,
        }
        torch.manual_seed(0)
        composed = compose(StudentSection.model_validate(section))
        for parameter in composed.model.projector.parameters():
            parameter.data *= 20  # loud images: different pictures get different answers
        composed.model.save_pretrained(path)
        composed.processor.save_pretrained(path)
        return str(path)

    return make


@pytest.fixture(scope="session")
def model_path(make_model) -> str:
    """A model of K = 4."""
    return make_model(4)


@pytest.fixture(scope="session")
def full_path(make_model) -> str:
    """A model without compression tokens."""
    return make_model(None)


@pytest.fixture(scope="session")
def loaded(model_path):
    return Reader.open(model_path).loaded


@pytest.fixture
def reader(loaded) -> Reader:
    """With nothing remembered yet."""
    return Reader(loaded, tokens=4)


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`picture(seed)`: a PNG of a coloured noise."""

    def png(seed: int, size: tuple[int, int] = (32, 32)) -> bytes:
        random = np.random.RandomState(seed)
        pixels = (random.rand(size[1], size[0], 3) * random.randint(1, 256, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return png
