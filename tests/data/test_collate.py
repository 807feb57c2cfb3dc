"""Batches in the text-only layout, checked against the text they came from."""

from __future__ import annotations

import pytest
import torch

from mmkd.data.collate import Collator
from mmkd.data.feature_store import FeatureStore, image_key
from mmkd.data.images import open_image
from mmkd.data.records import Record, Turn
from mmkd.errors import ConfigError, DataError


def text(processor, ids) -> str:
    return processor.tokenizer.decode(ids.tolist())


def row_tokens(batch, row: int, segment: int) -> torch.Tensor:
    return (batch["segment_ids"][row] == segment) & batch["attention_mask"][row].bool()


def test_only_what_the_assistant_says_is_labelled_and_its_end_token_too(processor, record):
    batch = Collator(processor, 200)([record("a", ("red?", "yes"), ("what?", "a cat"))])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert text(processor, ids) == "Q: red?\nA: yes</s>\nQ: what?\nA: a cat</s>\n"
    assert text(processor, ids[labels != -100]) == " yes</s> a cat</s>"
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_an_image_marker_in_a_text_stands_for_no_image_and_is_left_out(processor, record):
    """As where a model is asked; in a text-only row it would be a token that no question has ever again."""
    plain, marked = (
        Collator(processor, 200)([record("a", (question, "a cat"))]) for question in ("what?", "<image>what?")
    )
    assert torch.equal(plain["input_ids"], marked["input_ids"])
    assert torch.equal(plain["labels"], marked["labels"])
    nested = Collator(processor, 200)([record("a", ("<ima<image>ge>what?", "a cat"))])
    assert processor.image_token_id not in nested["input_ids"]


def test_padding_is_told_by_the_mask_where_the_pad_token_is_the_end_token(processor, record):
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    batch = Collator(processor, 200)([record("a", ("q", "a")), record("b", ("long question", "long answer"))])
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len("Q: q\nA: a") + 2, len("Q: long question\nA: long answer") + 2]
    for row, answer in enumerate((" a</s>", " long answer</s>")):
        real = batch["attention_mask"][row].bool()
        assert real[: lengths[row]].all()
        assert not real[lengths[row] :].any()
        assert (batch["labels"][row][~real] == -100).all()
        assert text(processor, batch["input_ids"][row][batch["labels"][row] != -100]) == answer
    assert batch["position_ids"][1].tolist() == list(range(lengths[1]))


def test_images_go_to_their_rows_in_order(processor, record, picture):
    records = [
        record("two", ("q", "a"), images=[picture(1), picture(2)]),
        record("none", ("q", "a"), images=[]),
        record("one", ("q", "a"), images=[picture(3)]),
    ]
    batch = Collator(processor, 200)(records)
    assert batch["image_rows"].tolist() == [0, 0, 2]
    assert batch["image_segments"].tolist() == [0, 0, 0]
    assert batch["image_tiles"].tolist() == [1, 1, 1]
    expected, _ = processor.image_tensors([open_image(picture(n)) for n in (1, 2, 3)])
    assert torch.equal(batch["pixel_values"], expected)


def test_a_batch_without_any_image_carries_one_dummy_of_zeros_on_no_row(processor, record):
    batch = Collator(processor, 200)([record("a", ("q", "a"), images=[])])
    assert batch["image_rows"].tolist() == [-1]
    assert batch["image_tiles"].tolist() == [1]
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    assert not batch["pixel_values"].any()


def test_packed_samples_are_whole_and_start_again_at_position_0(processor, record, picture):
    records = [record(str(n), (f"q{n}" * n, f"a{n}"), images=[picture(n)] * (n % 3)) for n in range(1, 9)]
    collator = Collator(processor, 100, packing=True, images_per_row=4)
    batch, plain = collator(records), Collator(processor, 100)(records)
    assert len(batch["input_ids"]) < len(records)
    assert sorted(batch["sample_ids"]) == [r.id for r in records]
    names = iter(batch["sample_ids"])
    image = 0
    for row in range(len(batch["input_ids"])):
        count = int(batch["segment_ids"][row].max()) + 1
        total = 0
        for segment in range(count):
            number = int(next(names)) - 1
            here, there = row_tokens(batch, row, segment), plain["attention_mask"][number].bool()
            for key in ("input_ids", "labels", "position_ids"):
                assert torch.equal(batch[key][row][here], plain[key][number][there]), key
            mine = [int(i) for i in (plain["image_rows"] == number).nonzero()]
            for i in mine:
                assert (int(batch["image_rows"][image]), int(batch["image_segments"][image])) == (row, segment)
                assert torch.equal(batch["pixel_values"][image], plain["pixel_values"][i])
                image += 1
            total += 1 + len(mine) * (1 + 4) + int(here.sum())
        assert total <= 100
        assert int((batch["image_rows"] == row).sum()) <= 4
    assert image == len(batch["image_rows"])


def test_the_length_limit_counts_sink_image_tokens_and_text(processor, record):
    one = record("a", ("q", "a"))  # sink, 1 + 4 for the image, 11 of text
    length = 1 + (1 + 4) + len("Q: q\nA: a") + 2
    assert Collator(processor, length).prepare(one).length == length
    with pytest.raises(DataError, match=rf"{length} tokens, 6 of them for images; data.max_length is {length - 1}"):
        Collator(processor, length - 1).prepare(one)


@pytest.mark.parametrize("system", [False, True])
def test_a_conversation_that_is_too_long_loses_its_last_questions_and_is_never_cut_inside_one(
    processor, record, system
):
    one = record("a", *[(f"question {n}", f"answer {n}") for n in range(7)])
    if system:
        one.turns.insert(0, Turn("system", "Be short."))
    collator = Collator(processor, 1000)
    lengths = []
    for kept in range(1, 8):
        shorter = Record("s", one.turns[: int(system) + 2 * kept], one.images)
        lengths.append(collator.prepare(shorter).length)
    for kept, length in enumerate(lengths, 1):
        for limit in (length, length + 1):
            sample = Collator(processor, limit).prepare(one)
            assert (sample.length, sample.dropped) == (length, 7 - kept)
            assert processor.tokenizer.decode(sample.ids).endswith(f"answer {kept - 1}</s>\n")
    with pytest.raises(DataError, match=r"data\.max_length"):
        Collator(processor, lengths[0] - 1).prepare(one)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "the roles are none"),
        ([("user", "q")], "the roles are user; allowed: user, assistant"),
        ([("assistant", "a"), ("user", "q")], "the roles are assistant, user"),
        ([("user", "q"), ("user", "q"), ("assistant", "a")], "the roles are user, user, assistant"),
        ([("user", "q"), ("robot", "a")], "user, robot"),
        ([("user", "q"), ("assistant", "a"), ("system", "s")], "system"),
        ([("user", "q"), ("assistant", " \n")], "the answer in turn 1 is empty"),
        ([("user", None), ("assistant", "a")], "turn 0 is a NoneType"),
    ],
)
def test_a_conversation_of_another_shape_is_refused_with_what_was_found(processor, turns, message):
    with pytest.raises(DataError, match=message):
        Collator(processor, 200).prepare(Record("a", [Turn(*turn) for turn in turns]))


def test_with_packing_a_sample_with_more_images_than_a_row_takes_is_refused(processor, record, picture):
    one = record("a", ("q", "a"), images=[picture(n) for n in range(3)])
    with pytest.raises(DataError, match=r"3 images; data\.images_per_row is 2"):
        Collator(processor, 200, packing=True, images_per_row=2).prepare(one)
    assert Collator(processor, 200, packing=False, images_per_row=2).prepare(one).tiles == [1, 1, 1]


def test_a_template_that_rewrites_earlier_turns_stops_the_run_and_not_the_row(processor, record):
    template = processor.chat_template
    processor.chat_template = "{{ bos_token }}{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        with pytest.raises(ConfigError, match="chat template changes earlier turns"):
            Collator(processor, 200).prepare(record("a", ("q", "a"), ("q", "a")))
    finally:
        processor.chat_template = template


def test_stored_features_stand_where_pixels_would(tmp_path, processor, record, picture):
    store = FeatureStore(tmp_path, "tower", torch.float32)
    features = torch.randn(3, 2, 5)
    store.put([image_key(picture(1)), image_key(picture(2))], features, tiles=[1, 2])
    records = [record("a", ("q", "a"), images=[picture(2)]), record("b", ("q", "a"), images=[picture(1)])]
    batch = Collator(processor, 200, feature_store=store)(records)
    assert "pixel_values" not in batch
    assert batch["image_tiles"].tolist() == [2, 1]
    assert torch.equal(batch["image_features"], torch.cat([features[1:], features[:1]]))
    blank = Collator(processor, 200, feature_store=store)([record("c", ("q", "a"), images=[])])
    assert blank["image_features"].tolist() == torch.zeros(1, 2, 5).tolist()
    with pytest.raises(DataError, match="fill it before training"):
        Collator(processor, 200, feature_store=store)([record("d", ("q", "a"), images=[picture(9)])])
