"""A writer tuned on chats: on their last turn alone, whole or not at all."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mmkd.checkpoints import mark_complete
from mmkd.config.programs_schema import TuneSection
from mmkd.data.records import Record, Turn
from mmkd.errors import ConfigError
from mmkd.synthesis.programs.making.tuning import IGNORED, encoded, padded, tune
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer


@pytest.fixture
def tokenizer():
    made = byte_tokenizer()
    made.chat_template = chat_template("qa", made)
    return made


LESSONS = [Record(f"r{n}", [Turn("user", f"Question: {n}?"), Turn("assistant", f"return {n}")]) for n in range(4)]


def test_only_the_last_turn_and_its_end_are_learned(tokenizer):
    chat = Record("r", [Turn("user", "a"), Turn("assistant", "shown"), Turn("user", "b"), Turn("assistant", "said")])
    row = encoded(chat, tokenizer)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(learned) == "said" + tokenizer.eos_token
    assert row["input_ids"][-len(learned) :] == learned
    assert "shown" in tokenizer.decode(row["input_ids"])
    batch = padded([row, encoded(LESSONS[0], tokenizer)], 0)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_a_writer_that_was_tuned_by_something_else_is_refused_with_what_differs(tmp_path):
    out, section = tmp_path / "writer", TuneSection(steps=30)

    def begun() -> None:  # all that a tuning leaves, but for its weights
        with pytest.raises(ConfigError, match="no-such"):
            tune("gguf:no-such", LESSONS, section, out)
        out.mkdir()
        mark_complete(out)

    begun()
    assert tune("gguf:no-such", LESSONS, section, out) == out
    assert tune("gguf:no-such", LESSONS, section.model_copy(update={"rounds": 7, "save_every": 3}), out) == out
    for source, lessons, changed, what in (
        ("gguf:other", LESSONS, {}, "source"),
        ("gguf:no-such", LESSONS[1:], {}, "records"),
        ("gguf:no-such", LESSONS, {"steps": 31, "learning_rate": 1.0}, "steps, learning_rate"),
    ):
        with pytest.raises(ConfigError, match=rf"writer was tuned with other {what} than now\. Take"):
            tune(source, lessons, section.model_copy(update=changed), out)
    (tmp_path / "writer.json").unlink()
    with pytest.raises(ConfigError, match="other source, steps"):
        tune("gguf:no-such", LESSONS, section, out)


@pytest.mark.slow
def test_a_tuned_writer_has_learned_and_is_made_once(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "first")
    tokenizer.save_pretrained(tmp_path / "first")
    section = TuneSection(steps=30, batch_size=4, learning_rate=1e-2, save_every=20)
    out = tune(f"local:{tmp_path}/first", LESSONS, section, tmp_path / "writer")
    batch = padded([encoded(one, tokenizer) for one in LESSONS], 0)

    def loss(folder):
        with torch.no_grad():
            return float(AutoModelForCausalLM.from_pretrained(folder)(**batch).loss)

    assert loss(out) < 0.5 * loss(tmp_path / "first")
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert tune(f"local:{tmp_path}/first", LESSONS, section, tmp_path / "writer") == out
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert not list(tmp_path.glob(".writer.checkpoints"))
    with pytest.raises(ConfigError, match="no program was verified"):
        tune(f"local:{tmp_path}/first", [], section, tmp_path / "other")
