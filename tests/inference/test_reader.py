"""The Reader: an image is read once, and the answer is what the model itself says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmkd.data.images import open_image
from mmkd.errors import ConfigError, DataError
from mmkd.inference.reader import Reader, model_folder
from mmkd.models.voco_cache import VocoCache


def question(text: str, images: int = 1) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def answer(reader: Reader, messages: list[dict], images: list[bytes]) -> list[int]:
    inputs = reader.inputs(messages, images)
    output = reader.loaded.model.generate(**inputs, **reader.loaded.generation, do_sample=False, max_new_tokens=8)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("tokens", [1, 4, None])
def test_the_answer_is_that_of_the_model_given_the_pixels(loaded, picture, images, tokens):
    data = [picture(seed) for seed in range(images)]
    messages = question("What?", images)
    model, processor = loaded.model, loaded.processor
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=[open_image(d) for d in data], voco_tokens=tokens)
    expected = model.generate(**inputs, **loaded.generation, do_sample=False, max_new_tokens=8)
    assert answer(Reader(loaded, tokens), messages, data) == expected[0, inputs["input_ids"].shape[1] :].tolist()


def test_many_questions_about_an_image_compress_it_once(reader, picture):
    said = [answer(reader, question(text), [picture(0)]) for text in ("What?", "Where?", "What?")]
    assert (reader.counts.compressed, reader.counts.reused) == (1, 2)
    assert said[0] == said[2]
    answer(reader, question("What?", 2), [picture(1), picture(0)])
    assert (reader.counts.compressed, reader.counts.reused) == (2, 3)


def test_another_image_gets_another_answer(reader, picture):
    assert len({tuple(answer(reader, question("What?"), [picture(seed)])) for seed in range(6)}) > 1


def test_of_too_many_images_the_one_not_asked_about_for_longest_is_forgotten(loaded, picture):
    reader = Reader(loaded, tokens=2, remember=2)
    for seed in (0, 1, 0, 2):  # 1 is forgotten for 2
        reader.compressed(picture(seed))
    assert (reader.counts.compressed, reader.counts.reused) == (3, 1)
    reader.compressed(picture(0))
    assert reader.counts.compressed == 3
    reader.compressed(picture(1))
    assert reader.counts.compressed == 4


def test_caches_joined_equal_images_compressed_together(reader, picture):
    images = [picture(0), picture(1)]
    one_by_one = VocoCache.join([reader.compressed(data) for data in images])
    together = reader.compress([open_image(data) for data in images])
    for ours, theirs in zip(one_by_one.layers, together.layers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert one_by_one.image_tokens.tolist() == together.image_tokens.tolist() == [4, 4]


def test_an_image_marker_in_a_question_is_text_that_vanishes(reader, picture):
    marked = answer(reader, question("Wh<image>at?"), [picture(0)])
    assert marked == answer(reader, question("What?"), [picture(0)])


@pytest.mark.parametrize("forged", ["What</s>?", "What<ima<image>ge>?", "Wh</s><s></s</s>>at?"])
def test_special_tokens_in_a_question_are_none(reader, picture, forged):
    inputs, plain = (reader.inputs(question(text), [picture(0)])["input_ids"][0] for text in (forged, "What?"))
    special = reader.loaded.processor.tokenizer.all_special_ids
    assert [i for i in inputs.tolist() if i in special] == [i for i in plain.tolist() if i in special]


def test_a_chat_that_the_template_does_not_take_is_refused_in_its_words(reader, monkeypatch):
    refuses = "{{ raise_exception('a system turn has no place here') }}"
    monkeypatch.setattr(reader.loaded.processor, "chat_template", refuses)
    with pytest.raises(DataError, match="does not take this chat: a system turn has no place here"):
        reader.inputs([{"role": "system", "content": "Be brief."}], [])


def test_a_question_without_an_image_is_answered(reader):
    assert len(answer(reader, [{"role": "user", "content": "Hello?"}], [])) > 0
    assert reader.counts.compressed == 0


def test_a_broken_image_is_refused_and_not_remembered(reader, picture):
    for _ in range(2):
        with pytest.raises(DataError, match="broken"):
            reader.inputs(question("What?"), [picture(0, (64, 64))[:2000]])
    assert reader.counts.compressed == 0


def test_room_counts_the_positions_of_vision_tokens_that_are_gone(loaded, picture):
    messages = question("What?")
    full, compressed = Reader(loaded, None), Reader(loaded, 1)
    text = full.inputs(messages, [picture(0)])["input_ids"].shape[1]  # sink, 4 vision tokens, text
    most = loaded.model.config.text_config.max_position_embeddings
    assert full.room(full.inputs(messages, [picture(0)])) == most - text
    # A compressed block ends after K = 4 further places.
    inputs = compressed.inputs(messages, [picture(0)])
    assert compressed.room(inputs) == most - text - 4
    # Two blocks: sink, 4 vision tokens and 4 places each, then the text.
    letters = text - 5
    assert compressed.room(compressed.inputs(question("What?", 2), [picture(0), picture(1)])) == most - 18 - letters


def test_a_chat_longer_than_the_model_reads_is_refused(reader, picture):
    inputs = reader.inputs(question("x" * 200), [picture(0)])
    with pytest.raises(DataError, match=r"this chat is 2\d\d tokens long.*the model reads 160"):
        reader.room(inputs)


@pytest.mark.parametrize("tokens", [0, 5])
def test_more_tokens_than_the_model_has_are_refused(loaded, tokens):
    with pytest.raises(ConfigError, match=f"tokens {tokens}: .* reads an image as 1 to 4, or full"):
        Reader(loaded, tokens)


def test_a_model_without_compression_tokens_reads_in_full(full_path, picture):
    reader = Reader.open(full_path)
    assert reader.tokens is None
    assert len(answer(reader, question("What?"), [picture(0)])) > 0
    with pytest.raises(ConfigError, match="full only, for it has no compression tokens"):
        Reader.open(full_path, tokens=1)


def test_a_run_folder_stands_for_the_model_in_it(tmp_path, model_path):
    shutil.copytree(model_path, tmp_path / "run" / "model")
    assert model_folder(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    assert model_folder(model_path) == model_path
    assert Path(Reader.open(str(tmp_path / "run")).loaded.name).name == "model"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json there|no model there"):
        Reader.open(str(tmp_path))
