"""A decoder that is given another's tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.transplant import give_tokens, pieces_of, word_tokens
from mmkd.data.byte_spans import byte_table
from tests.byte_tokenizer import byte_level, byte_tokenizer, sentence_piece

KINDS = [byte_level(["a red circle"] * 9), byte_tokenizer(), sentence_piece()]


@pytest.mark.parametrize("old", KINDS, ids=["merges", "bytes", "words"])
@pytest.mark.parametrize("new", KINDS, ids=["merges", "bytes", "words"])
def test_pieces_stand_for_the_same_bytes_and_special_tokens_for_the_same_role(old, new):
    table, wanted = byte_table(old), byte_table(new)
    pieces = pieces_of(old, new)
    assert len(pieces) == len(wanted)
    assert [b"".join(table[piece] for piece in found) for found in pieces] == wanted
    assert pieces[new.bos_token_id] == [old.bos_token_id]
    assert pieces[new.eos_token_id] == [old.eos_token_id]


def test_a_decoder_says_the_same_of_the_same_text_in_tokens_that_it_had():
    old, new = byte_level(["a red circle"] * 9), byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(old), tie_word_embeddings=True)).eval()
    text = "xyz?"  # no merge in it
    before = model(torch.tensor([old.encode(text)])).logits
    give_tokens(model, old, new)
    after = model(torch.tensor([new.encode(text)])).logits
    of = [found[0] for found in pieces_of(old, new)]
    torch.testing.assert_close(after, before[..., of])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (model.config.vocab_size, model.config.eos_token_id) == (len(new), new.eos_token_id)


def test_a_tokenizer_of_words_has_each_as_one_token_and_says_every_other_text_in_bytes(tmp_path):
    like = byte_tokenizer()
    like.save_pretrained(tmp_path / "like")
    texts = ["how many circles?", "circles or nothing, nothing"]
    words = AutoTokenizer.from_pretrained(word_tokens(texts, f"hf:{tmp_path / 'like'}", tmp_path / "words"))
    assert words.tokenize("how many circles or nothing?") == ["how", "Ġmany", "Ġcircles", "Ġor", "Ġnothing", "?"]
    assert words.decode(words.encode("日本 zebra")) == "日本 zebra"
    assert words.special_tokens_map == like.special_tokens_map
    assert len(words) < 320
