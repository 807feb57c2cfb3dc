"""A student of random weights that answers in milliseconds."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmkd.compose import compose
from mmkd.config.schema import StudentSection


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory, byte_tokenizer) -> str:
    """Folder of a model that reads 4 vision tokens an image."""
    language, folder = tmp_path_factory.mktemp("language"), tmp_path_factory.mktemp("student")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(byte_tokenizer), **sizes)).save_pretrained(language)
    byte_tokenizer.save_pretrained(language)
    vision = {"source": "timm:test_efficientnet", "pretrained": False, "image_size": 32, "grid": [2, 2]}
    section = {"vision": vision, "language": {"source": f"hf:{language}"}, "template": "qa"}
    composed = compose(StudentSection.model_validate(section))
    composed.model.save_pretrained(folder)
    composed.processor.save_pretrained(folder)
    return str(folder)
