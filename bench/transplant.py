"""A pre-trained decoder that reads and writes the tokens of another one.

Token-level objectives want one tokenizer on both sides, which small decoders of two families hardly ever have. Each row
of the new embedding is the mean of the rows of the pieces into which the old tokenizer cuts the same text. So a decoder
can also be cut down to the few hundred tokens that a data set needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmkd.contracts import Spec, adapter
from mmkd.data.byte_spans import byte_table

ROLES = ("unk_token_id", "pad_token_id", "bos_token_id", "eos_token_id")  # one token may have several; the last counts


def transplanted(body: str, tokens: str, folder: Path) -> Path:
    """`folder` with the decoder `body` and the tokenizer of `tokens` (both as in `student.language`), once made."""
    if not (folder / "config.json").exists():
        decoder, giver = Spec.parse(body), Spec.parse(tokens)
        parts, tokenizer = adapter("language", decoder)().load(decoder), adapter("language", giver)().tokenizer(giver)
        give_tokens(parts.model, parts.tokenizer, tokenizer)
        tokenizer.save_pretrained(folder)
        parts.model.save_pretrained(folder)
    return folder


def word_tokens(texts: Iterable[str], like: str, folder: Path) -> Path:
    """`folder` with a byte-level tokenizer that has a token for each word of `texts` as it stands there, at a start
    also behind a space, and the special tokens of `like` (as in `student.language`), once made."""
    if not (folder / "tokenizer.json").exists():
        spec = Spec.parse(like)
        special = adapter("language", spec)().tokenizer(spec).special_tokens_map
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=10_000, initial_alphabet=letters, show_progress=False)
        backend.train_from_iterator((said for text in texts for said in (text, f" {text}")), trainer)
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


@torch.no_grad()
def give_tokens(model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> None:
    """Replace the rows of embedding and tied head by those of another vocabulary."""
    rows = model.get_input_embeddings().weight.clone()
    means = torch.stack([rows[pieces].mean(0) for pieces in pieces_of(old, new)])
    model.resize_token_embeddings(len(means), mean_resizing=False)
    model.get_input_embeddings().weight.copy_(means)
    for config in (model.config, model.generation_config):
        for role in ROLES:
            setattr(config, role, getattr(new, role))


def pieces_of(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> list[list[int]]:
    """For each id of `new`, the ids of `old` that stand for the same bytes; for a special token the one of its role;
    for bytes that `old` lacks (SmolLM2 those that UTF-8 never has) its first token."""
    table = byte_table(old)
    single = {text: token for token, text in enumerate(table) if len(text) == 1}
    special = {getattr(new, role): getattr(old, role) for role in ROLES if getattr(old, role) is not None}
    pieces = []
    for token, text in enumerate(byte_table(new)):
        found = old.encode(text.decode(errors="replace"), add_special_tokens=False)
        if b"".join(table[piece] for piece in found) != text:  # a part of a character, or a space put before
            found = [single[bytes([byte])] for byte in text if bytes([byte]) in single]
        pieces.append(found or [special.get(token, old.bos_token_id)])
    return pieces
