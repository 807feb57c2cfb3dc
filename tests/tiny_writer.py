"""A writer of programs with real weights, as small as it may be and still write one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmkd.config.programs_schema import TuneSection
from mmkd.data.records import Record, Turn
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.making.tuning import tune
from mmkd.synthesis.programs.making.writing import Prompts
from mmkd.synthesis.programs.tools import Toolset
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer

PROGRAM = "def answer(image):\n    return count(image, 'circle')"


def tiny_writer(folder: Path) -> str:
    """The source of a decoder that writes PROGRAM whatever it is asked, where `count` is the only tool."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template("qa", tokenizer)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    prompts = Prompts(Toolset(classical(), ["count"]), 0)
    lessons = [
        Record(shape, [*prompts.turns(f"how many {shape}s are there?"), Turn("assistant", PROGRAM)])
        for shape in ("circle", "triangle")
    ]
    section = TuneSection(steps=120, batch_size=2, learning_rate=5e-3, save_every=1000)
    return f"local:{tune(f'local:{folder}/random', lessons, section, folder / 'first')}"
