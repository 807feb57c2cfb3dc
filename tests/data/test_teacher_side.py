"""A record as two sides with templates, tokenizers and image processing of their own read it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import normalizers
from transformers import CLIPImageProcessor

from mmkd.data.collate import Collator
from mmkd.data.rejected import BadRow
from mmkd.data.teacher_side import TeacherSide
from mmkd.errors import ConfigError
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_level, sentence_piece

QUESTION = "what is it?"
TEXTS = ["a red circle", "a blue square and a red circle", QUESTION, "red red red"]
LONG = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}xxxxxxxxxxxxxxxxxxxx{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def reader(tokenizer=None, template="chatml", side=8, padding_side="right") -> MmkdProcessor:
    """A processor unlike the fixture's: learnt merges, other turns."""
    tokenizer = tokenizer or byte_level(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = padding_side
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|im_start|>", "<|im_end|>"]})
    size = {"height": side, "width": side}
    images = CLIPImageProcessor(size=size, do_center_crop=False, crop_size=size)
    text = template if "{" in template else chat_template(template, tokenizer)
    return MmkdProcessor(images, tokenizer, chat_template=text, image_tokens=4)


@pytest.fixture
def collator(processor):
    """`collator(teacher processor, max_length, packing)`"""

    def build(teacher, max_length=256, packing=False):
        return Collator(processor, max_length, packing, teacher=TeacherSide(processor, teacher))

    return build


@pytest.fixture
def records(record, picture):
    return [
        record("a", (QUESTION, "a red circle"), (QUESTION, "blue")),
        record("b", (QUESTION, "日本 🙂 é"), images=[picture(1), picture(2)]),
        record("c", ("", "red"), ("and then?", "a red  circle."), images=[]),
    ]


def before(text: TeacherSide, side: int, ids: torch.Tensor, labels: torch.Tensor, number: int) -> bytes:
    """Bytes of the answer that stand before the answer token of this number of a batch."""
    table = text._tables[side]
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    row, column = int(rows[number]), int(columns[number]) + 1
    start = column
    while start and labels[row, start - 1] != -100:
        start -= 1
    return b"".join(table[int(i)] for i in ids[row, start:column])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("make", [lambda: reader(), lambda: reader(sentence_piece(), "qa"), lambda: reader(None, "qa")])
def test_at_every_span_both_sides_have_read_the_same_bytes_and_a_matched_token_is_the_same(
    collator, records, make, packing
):
    made = collator(make(), packing=packing)
    batch = made(records)
    theirs, text = batch["teacher"], made.teacher
    assert len(theirs["input_ids"]) == len(batch["input_ids"]) == (1 if packing else 3)
    pairs = {tuple(pair) for pair in text.shared_ids().T.tolist()}
    targets = [side["labels"][:, 1:][side["labels"][:, 1:] != -100] for side in (batch, theirs)]
    assert len(theirs["spans"]) >= 5 * 2  # two places for each answer at least: its text and its end
    kinds = set()
    for ours, other, matched in theirs["spans"].tolist():
        one = before(text, 0, batch["input_ids"], batch["labels"], ours)
        two = before(text, 1, theirs["input_ids"], theirs["labels"], other)
        assert one.lstrip(b" ") == two.lstrip(b" ")
        kinds.add(matched)
        if matched:
            assert (int(targets[0][ours]), int(targets[1][other])) in pairs
    assert kinds == {0, 1}


def test_each_answer_ends_in_a_matched_span_though_the_end_tokens_differ(collator, record, processor):
    teacher = reader()
    batch = collator(teacher)([record("a", (QUESTION, "red"), (QUESTION, "a blue square"))])
    ids = [side["labels"][:, 1:][side["labels"][:, 1:] != -100] for side in (batch, batch["teacher"])]
    ends = [(int(ids[0][a]), int(ids[1][b])) for a, b, m in batch["teacher"]["spans"].tolist() if m]
    mine = processor.tokenizer.eos_token_id
    assert ends.count((mine, teacher.tokenizer.convert_tokens_to_ids("<|im_end|>"))) == 2


def test_a_template_without_an_end_token_has_none_to_share(processor):
    bare = reader(template="{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}")
    with_end = TeacherSide(processor, reader()).shared_ids()
    without = TeacherSide(processor, bare).shared_ids()
    assert with_end.shape[1] == without.shape[1] + 1
    assert processor.tokenizer.eos_token_id not in without[0]
    assert with_end.shape[1] == 257  # every byte, and the end


def test_the_side_on_which_the_teachers_tokenizer_pads_does_not_matter(collator, records):
    left, right = (collator(reader(padding_side=side))(records)["teacher"] for side in ("left", "right"))
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert left["attention_mask"].min() == 0
    assert (left["attention_mask"].diff(dim=1) <= 0).all()


def test_the_teacher_gets_pixels_of_its_own_only_where_its_processing_differs(collator, records, record):
    assert "pixel_values" not in collator(reader())(records)["teacher"]
    made = collator(reader(side=16))
    batch = made(records)
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert batch["teacher"]["pixel_values"].shape == (3, 3, 16, 16)
    for name in ("image_rows", "image_segments", "image_tiles"):
        assert torch.equal(batch[name], batch["teacher"][name])
    blank = made([record("a", (QUESTION, "red"), images=[])])["teacher"]
    assert blank["pixel_values"].shape == (1, 3, 16, 16)
    assert blank["image_rows"].tolist() == [-1]


def test_a_record_is_cut_at_the_same_question_on_both_sides_and_the_longer_one_decides(collator, record):
    long = record("a", *[(QUESTION, "red")] * 6, images=[])
    made = collator(reader(template=LONG), max_length=110)
    sample = made.prepare(long)
    assert 0 < sample.dropped < 5
    assert sample.length == 1 + max(len(sample.ids), len(sample.teacher.ids)) <= 110
    assert len(sample.teacher.ids) > len(sample.ids)
    kept = 6 - sample.dropped
    assert made.processor.tokenizer.decode(sample.ids).count(QUESTION) == kept
    assert made.teacher.processor.tokenizer.decode(sample.teacher.ids).count(QUESTION) == kept
    with pytest.raises(BadRow, match=r"data\.max_length is 20"):
        collator(reader(), max_length=20).prepare(long)


def test_an_answer_that_one_side_changes_is_set_aside_with_the_place(collator, record):
    tokenizer = byte_level(TEXTS)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(BadRow, match="part at byte 3") as caught:
        collator(reader(tokenizer)).prepare(record("a", (QUESTION, "cafe\u0301")))
    assert caught.value.kind == "answers not aligned"


def test_a_special_token_written_in_an_answer_sets_the_record_aside(collator, record):
    with pytest.raises(BadRow, match="do not read the same answer"):
        collator(reader()).prepare(record("a", (QUESTION, "red<|im_end|>blue")))


def test_a_template_that_cannot_tell_who_speaks_is_refused_at_once(processor):
    last = "{{ bos_token }}{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="changes earlier turns"):
        TeacherSide(processor, reader(template=last))
