"""Which tokens of two tokenizers stand for the same bytes of an answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmkd.errors import ConfigError

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Span:
    """Tokens `student[0]:student[1]` and `teacher[0]:teacher[1]` of an answer, which stand for the same bytes.

    Before its first token both sides have read the same text.
    """

    student: tuple[int, int]
    teacher: tuple[int, int]


def byte_table(tokenizer: Any) -> list[bytes]:
    """The bytes of every token id; none for special tokens, which stand for no text.

    Reads byte-level tokenizers (GPT-2, Llama 3, Qwen), where a character stands for a byte, and those of SentencePiece
    kind (Llama 2, Gemma), where `▁` is a space and `<0xE2>` a byte.

    Raises: ConfigError for another kind.
    """
    kinds = _decoder_kinds(tokenizer)
    if "ByteLevel" in kinds:
        letters = _byte_letters()

        def read(token: str) -> bytes:
            return bytes(letters[letter] for letter in token)
    elif kinds & {"ByteFallback", "Metaspace"}:

        def read(token: str) -> bytes:
            byte = BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    else:
        raise ConfigError(
            f"{type(tokenizer).__name__} decodes by {', '.join(sorted(kinds)) or 'rules of its own'}; aligning by "
            "bytes takes tokenizers that decode by ByteLevel, ByteFallback or Metaspace."
        )
    added = tokenizer.added_tokens_decoder
    table = [b""] * (1 + max(tokenizer.get_vocab().values()))
    for token, i in tokenizer.get_vocab().items():
        if i in added:
            # Gemma writes runs of spaces as added tokens, in the letters of its others.
            text = added[i].content if "ByteLevel" in kinds else added[i].content.replace("▁", " ")
            table[i] = b"" if added[i].special else text.encode()
        else:
            table[i] = read(token)
    return table


def ids_by_bytes(tokenizer: Any) -> dict[bytes, int]:
    """The token id that text of these bytes is read as.

    Of several tokens of the same bytes one that is written counts before a spare byte (`<0x0A>`), wherever the
    vocabulary has either: Llama 2's `a` stands behind them, Gemma's newline before them. Raises: as `byte_table`.
    """
    spare = {i for token, i in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token)}
    table = byte_table(tokenizer)
    return {table[i]: i for i in sorted(range(len(table)), key=lambda i: i not in spare) if table[i]}


def align(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span]:
    """The shortest spans in which two tokenizations of one answer stand for the same bytes, in order.

    Args:
        student, teacher: bytes of each token of the answer, from `byte_table`.

    Only bytes count: a token may end inside a character. Tokens without bytes (a BOS on one side) begin no span, except
    the first that follows the last byte, by which a side says that its answer is over: both sides' are a span.
    Spaces before the answer may differ, since SentencePiece puts one before each text. A token that is nothing but such
    spaces then belongs to no span, and another's belong to the first.

    Raises: ValueError where the answers are different texts.
    """
    texts = [b"".join(tokens) for tokens in (student, teacher)]
    spaces = [0, 0]
    if texts[0] != texts[1]:
        spaces = [len(text) - len(text.lstrip(b" ")) for text in texts]
        texts = [text[count:] for text, count in zip(texts, spaces, strict=True)]
    if texts[0] != texts[1]:
        equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts)))
        ours, theirs = (text[max(0, equal - 10) : equal + 20] for text in texts)
        raise ValueError(f"the student's answer and the teacher's part at byte {equal}: {ours!r} and {theirs!r}.")
    ends = _ends(student, spaces[0]), _ends(teacher, spaces[1])
    ours, theirs = _tokens_within(student, spaces[0]), _tokens_within(teacher, spaces[1])
    spans = []
    for place in sorted(ends[0].keys() & ends[1].keys()):
        start = _next_with_bytes(student, ours), _next_with_bytes(teacher, theirs)
        ours, theirs = ends[0][place], ends[1][place]
        spans.append(Span((start[0], ours), (start[1], theirs)))
    if ours < len(student) and theirs < len(teacher):
        spans.append(Span((ours, ours + 1), (theirs, theirs + 1)))
    return spans


def _ends(tokens: Sequence[bytes], spaces: int) -> dict[int, int]:
    """Bytes of the answer, so many spaces before it not counted, up to the end of a token -> tokens up to there."""
    lengths = itertools.accumulate((len(token) for token in tokens), initial=-spaces)
    return {
        place: count
        for count, (place, token) in enumerate(zip(itertools.islice(lengths, 1, None), tokens, strict=True), 1)
        if token and place > 0
    }


def _tokens_within(tokens: Sequence[bytes], spaces: int) -> int:
    """Number of tokens that end within the first so many bytes."""
    return sum(length <= spaces for length in itertools.accumulate(map(len, tokens))) if spaces else 0


def _next_with_bytes(tokens: Sequence[bytes], start: int) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i])


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Names of the steps by which a tokenizer turns tokens into text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # none where the tokenizer is written in Python
    if backend is None or backend.decoder is None:
        return set()
    decoder = json.loads(backend.decoder.__getstate__())
    return {step["type"] for step in decoder.get("decoders", [decoder])}


def _byte_letters() -> dict[str, int]:
    """The byte for which each letter of a byte-level vocabulary stands: printable ones stand for themselves, the others
    follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
