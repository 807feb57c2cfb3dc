"""Two tokenizations of one answer, aligned by bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AddedToken, PreTrainedTokenizerFast

from mmkd.data.byte_spans import Span, align, byte_table, ids_by_bytes
from mmkd.errors import ConfigError
from tests.byte_tokenizer import byte_level, byte_tokenizer, sentence_piece

TEXTS = [
    "a red circle, twice.",
    "Ünïcode – naïve café",
    "emoji 🙂👩‍👩‍👧‍👦🇪🇺 end",
    "红色的圆形在蓝色的正方形上",
    "日本語とEnglishの混在",
    "  two spaces,\n a line and\ttab ",
]
ANSWERS = st.text(st.characters(codec="utf-8") | st.sampled_from("🙂👩‍红色ば é"), max_size=20).map(str.encode)


def cut(text: bytes, places: set[int]) -> list[bytes]:
    """Bytes cut at some places, inside characters too."""
    borders = [0, *sorted(place for place in places if 0 < place < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders) if a < b]


CUTS = st.sets(st.integers(0, 80))


def texts(spans: list[Span], student: list[bytes], teacher: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"".join(student[slice(*s.student)]), b"".join(teacher[slice(*s.teacher)])) for s in spans]


@settings(max_examples=200, deadline=None)
@given(ANSWERS, CUTS, CUTS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_spans_hold_the_same_bytes_cover_the_answer_and_cannot_be_cut(text, ours, theirs, bos, spaces, ends):
    text = text.lstrip(b" ")
    student = cut(text, ours) + [b""] * min(ends, 1)
    teacher = [b""] * bos + ([b" " * spaces] if spaces else []) + cut(text, theirs) + [b""] * ends
    if not text:  # then what is a BOS, and what an end, cannot be told
        return
    spans = align(student, teacher)
    found = texts(spans, student, teacher)
    assert all(a == b.lstrip(b" ") or i for i, (a, b) in enumerate(found))
    assert all(a == b for a, b in found[1:])
    assert b"".join(a for a, _ in found) == text
    # One span more than places where both are cut, and one for the end.
    common = {p for p in ours & theirs if 0 < p < len(text)}
    assert len(spans) == 1 + len(common) + bool(ends)
    for side in ("student", "teacher"):
        borders = [border for span in spans for border in getattr(span, side)]
        assert borders == sorted(borders)


@settings(max_examples=50, deadline=None)
@given(ANSWERS, CUTS)
def test_one_tokenizer_aligns_token_by_token(text, places):
    for spaces in (b"", b"  "):
        tokens = [*cut(spaces + text, places), b""]
        assert align(tokens, tokens) == [Span((n, n + 1), (n, n + 1)) for n in range(len(tokens))]


def test_an_example_as_one_reads_it():
    student = [b"a", b" r", b"ed", b" \xf0\x9f", b"\x99\x82", b""]
    teacher = [b"", b"a re", b"d", b" ", b"\xf0\x9f\x99", b"\x82", b""]
    assert align(student, teacher) == [
        Span((0, 3), (1, 3)),  # "a red": neither side ends a token inside where the other does
        Span((3, 5), (3, 6)),  # " 🙂", cut inside the character at different bytes
        Span((5, 6), (6, 7)),  # the end of the answer
    ]


def test_spaces_that_one_side_alone_writes_before_the_answer_are_no_place_to_compare():
    assert align([b" red", b""], [b" ", b" ", b"re", b"d", b""]) == [Span((0, 1), (2, 4)), Span((1, 2), (4, 5))]
    assert align([b"red"], [b"  re", b"d"]) == [Span((0, 1), (0, 2))]


def test_different_answers_are_told_apart_by_the_first_byte_that_differs():
    with pytest.raises(ValueError, match="part at byte 6"):
        align([b"a red", b" circle"], [b"a red ", b"square"])


@pytest.mark.parametrize("text", TEXTS)
def test_the_byte_table_gives_back_the_text_of_each_kind_of_tokenizer(text):
    for tokenizer in (byte_tokenizer(image=True), byte_level(TEXTS)):
        table = byte_table(tokenizer)
        assert b"".join(table[i] for i in tokenizer.encode(text)) == text.encode()
        assert table[tokenizer.eos_token_id] == b""
    tokenizer = sentence_piece()
    table = byte_table(tokenizer)
    assert b"".join(table[i] for i in tokenizer.encode(text)) == b" " + text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizers_of_different_kinds_align_on_real_text(text):
    sides = byte_tokenizer(), byte_level(TEXTS[:3]), sentence_piece()
    tables = [byte_table(tokenizer) for tokenizer in sides]
    for (one, a), (two, b) in itertools.permutations(zip(sides, tables, strict=True), 2):
        student = [a[i] for i in [*one.encode(text), one.eos_token_id]]
        teacher = [b[i] for i in [two.bos_token_id, *two.encode(text), two.eos_token_id]]
        found = texts(align(student, teacher), student, teacher)
        assert found[-1] == (b"", b"")
        assert b"".join(s for s, _ in found).lstrip(b" ") == text.encode().lstrip(b" ")
        assert all(s == t for s, t in found[1:])


def test_another_kind_of_tokenizer_is_refused_by_what_it_is():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="decodes by WordPiece"):
        byte_table(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_runs_of_spaces_that_are_added_tokens_are_spaces():
    """Gemma writes them so, in the letters of its other tokens."""
    tokenizer = sentence_piece()
    tokenizer.add_tokens([AddedToken("▁▁", special=False, normalized=False), "<image>"])
    assert byte_table(tokenizer)[tokenizer.convert_tokens_to_ids("▁▁")] == b"  "


@pytest.mark.parametrize("first", ["written", "spare"])
def test_bytes_have_the_id_that_text_is_read_as(first):
    """Gemma's newline stands before the bytes that spell what has no token, Llama 2's letters behind them."""
    spare = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "\n", *spare] if first == "written" else ["<unk>", *spare, "\n"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.ByteFallback()
    ids = ids_by_bytes(tokenizer := PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [ids[b"\n"]] == tokenizer.encode("\n") == [tokenizer.convert_tokens_to_ids("\n")]
    assert [ids[bytes([byte])] for byte in "é".encode()] == tokenizer.encode("é")
