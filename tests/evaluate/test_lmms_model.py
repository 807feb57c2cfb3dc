"""The lmms-eval plug-in, asked directly: order, batches, caches, blindness, settings."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model, get_model_manifest
from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history, reset_logged_metrics
from PIL import Image

from mmkd.data.images import open_image
from mmkd.errors import ConfigError, DataError
from mmkd.evaluate.answers import settings_of
from mmkd.evaluate.lmms_model import MmkdLmms
from mmkd.evaluate.requests import read_request

QUESTIONS = ["what?", "what color is the shape in the middle of it?", "is it red?", "how many are there in all?"]
COLORS = ["red", "green", "blue", "white", "black"]
GREEDY = {"max_new_tokens": 5, "until": ["\n\n"]}


def picture(color: str) -> Image.Image:
    image = Image.new("RGB", (40, 24), color)
    image.paste("yellow", (4, 4, 20, 12))
    return image


def requests_of(lm: MmkdLmms, documents: list[dict], settings: dict = GREEDY) -> list[Instance]:
    """A chat task's requests, as lmms-eval builds them, for documents {images, question}."""

    def to_messages(document: dict) -> list[dict]:
        content = [{"type": "image", "url": image} for image in document["images"]]
        return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]

    lm.task_dict["task"] = {"test": documents}
    return [
        Instance(
            request_type="generate_until",
            arguments=(document["question"], to_messages, dict(document.get("settings", settings)), i, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": i, "repeats": 1},
        )
        for i, document in enumerate(documents)
    ]


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    """Twenty questions, the images mixed: each question on each image, never twice the same image in a row."""
    return [{"images": [picture(color)], "question": question} for question in QUESTIONS for color in COLORS]


@pytest.fixture(scope="module")
def lm(folder: str) -> MmkdLmms:
    return MmkdLmms(pretrained=folder, batch_size=8)


def texts(lm: MmkdLmms, documents: list[dict], batch_size: int = 8, settings: dict = GREEDY) -> list[str]:
    lm.batch_size = batch_size
    return [answer.text for answer in lm.generate_until(requests_of(lm, documents, settings))]


def test_a_penalty_is_the_tasks_and_not_the_models_own(lm, documents, monkeypatch):
    expected = texts(lm, documents)
    monkeypatch.setattr(lm.loaded.model.generation_config, "repetition_penalty", 50.0)
    monkeypatch.setattr(lm.loaded.model.generation_config, "no_repeat_ngram_size", 1)
    assert texts(lm, documents) == expected
    assert texts(lm, documents, settings={**GREEDY, "repetition_penalty": 50.0}) != expected


def test_beams_are_the_tasks_and_not_the_models_own(lm, documents, monkeypatch):
    rows: list[int] = []
    monkeypatch.setattr(lm.loaded.model.generation_config, "num_beams", 3)
    head = lm.loaded.model.get_output_embeddings()
    watch = head.register_forward_pre_hook(lambda head, hidden: rows.append(len(hidden[0])))
    try:
        greedy = texts(lm, documents[:2])
        assert set(rows) == {2}
        texts(lm, documents[:2], settings={**GREEDY, "num_beams": 2})
        assert 4 in rows
    finally:
        watch.remove()
    assert greedy == texts(lm, documents[:2])


def alone(lm: MmkdLmms, document: dict, tokens: int | None) -> str:
    """The answer of the model itself, asked without the plug-in: one prompt, no cache, no batch."""
    processor, model = lm.loaded.processor, lm.loaded.model
    content = [{"type": "image"} for _ in document["images"]] + [{"type": "text", "text": document["question"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = processor(images=document["images"], text=text, voco_tokens=tokens)
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).split("\n\n")[0].strip()


def test_lmms_eval_finds_the_model_through_its_entry_point():
    assert get_model_manifest("mmkd").chat_class_path.endswith("MmkdLmms")
    assert get_model("mmkd") is MmkdLmms


@pytest.mark.parametrize("tokens", [1, 4, "full"])
def test_answers_are_the_models_own_in_the_order_of_the_requests(lm, documents, tokens):
    lm.read_with(tokens)
    answers = texts(lm, documents)
    assert answers == [alone(lm, document, None if tokens == "full" else tokens) for document in documents]
    assert len(set(answers)) > 5  # the random model does tell questions and pictures apart


@pytest.mark.parametrize("tokens", [2, "full"])
def test_answers_do_not_move_with_the_batch_size(lm, documents, tokens):
    lm.read_with(tokens)
    expected = texts(lm, documents, batch_size=1)
    assert texts(lm, documents, batch_size=3) == texts(lm, documents, batch_size=64) == expected


@pytest.mark.parametrize("tokens", [2, "full"])
def test_the_vision_tower_looks_once_at_an_image_however_many_questions_it_gets(lm, documents, tokens):
    lm.read_with(tokens)
    seen: list[int] = []
    hook = lm.loaded.model.vision_tower.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    texts(lm, documents, batch_size=4)
    hook.remove()
    assert sum(seen) == len(COLORS)


class Opened(Sequence):
    """Documents that open their picture anew whenever they are asked for, as a data set on disk does."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        return {"images": [picture(f"#{6 * range(16)[index]:02x}0000").resize((33, 35))], "question": "what?"}


@pytest.mark.parametrize("model", ["folder", "stock_llava"])
def test_no_more_images_are_held_at_once_than_a_window_has(model, request, monkeypatch):
    lm = MmkdLmms(pretrained=request.getfixturevalue(model))
    expected = texts(lm, list(Opened()), batch_size=1)
    monkeypatch.setattr("mmkd.evaluate.lmms_model.BATCHES_PER_WINDOW", 2)
    generate, held = lm.loaded.model.generate, []

    def spy(**inputs):
        held.append(sum(isinstance(thing, Image.Image) and thing.size == (33, 35) for thing in gc.get_objects()))
        return generate(**inputs)

    monkeypatch.setattr(lm.loaded.model, "generate", spy)
    assert texts(lm, Opened(), batch_size=2) == expected
    assert 0 < max(held) <= 2 * 2


def test_several_images_and_none_may_stand_in_one_batch(lm):
    mixed = [
        {"images": [picture("red"), picture("blue")], "question": "which?"},
        {"images": [], "question": "what?"},
        {"images": [picture("blue"), picture("red")], "question": "which?"},
        {"images": [picture("red")], "question": "what?"},
    ]
    for tokens in (2, "full"):
        lm.read_with(tokens)
        assert texts(lm, mixed) == texts(lm, mixed, batch_size=1)


@pytest.mark.parametrize("tokens", [2, "full"])
def test_more_images_than_one_pass_holds_give_the_same_answers(lm, documents, monkeypatch, tokens):
    lm.read_with(tokens)
    expected = texts(lm, documents)
    monkeypatch.setattr("mmkd.evaluate.seen_images.IMAGES_PER_PASS", 2)
    assert texts(lm, documents) == expected


def test_an_image_cut_into_tiles_is_asked_about_as_the_model_itself_is(lm, monkeypatch):
    monkeypatch.setattr(lm.loaded.processor, "tiles", 2)
    wide = picture("red").resize((80, 40))
    documents = [{"images": [image], "question": q} for q in QUESTIONS for image in (wide, picture("blue"))]
    for tokens in (2, "full"):
        lm.read_with(tokens)
        expected = [alone(lm, document, None if tokens == "full" else tokens) for document in documents]
        assert texts(lm, documents, batch_size=3) == expected


def test_images_of_a_task_are_read_as_in_training(lm, tmp_path):
    """By path or opened: transparency on white, 16 bit scaled, upright."""
    half = np.full((24, 40, 4), (200, 0, 0, 64), dtype=np.uint8)
    sixteen = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.fromarray(half).save(tmp_path / "clear.png")
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    picture("red").save(tmp_path / "turned.jpg", exif=upright)
    for path in map(str, tmp_path.iterdir()):
        documents = [{"images": [image], "question": "what?"} for image in (path, Image.open(path))]
        for index, request in enumerate(requests_of(lm, documents)):
            (image,) = read_request(index, request, lm.task_dict, lm.loaded, blind=False).images
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(open_image(path))), path


def test_an_image_of_a_task_that_cannot_be_read_is_named(lm, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    for image, message in (
        (str(tmp_path / "broken.png"), "broken.png is none of"),
        (Image.new("F", (2, 2)), "of task"),
    ):
        (request,) = requests_of(lm, [{"images": [image], "question": "what?"}])
        with pytest.raises(DataError, match=message):
            read_request(0, request, lm.task_dict, lm.loaded, blind=False)


def test_blind_answers_depend_on_the_question_alone(lm, documents):
    lm.read_with("full", blind=True)
    answers = texts(lm, documents)
    assert all(answers[i] == answers[i - i % len(COLORS)] for i in range(len(answers)))
    text_only = [{"images": [], "question": question} for question in QUESTIONS]
    assert answers[:: len(COLORS)] == texts(lm, text_only)


def test_an_image_marker_written_into_a_question_is_no_image(lm):
    lm.read_with(2)
    marked = [{"images": [picture("red")], "question": "<image>what?"}]
    assert texts(lm, marked) == texts(lm, [{"images": [picture("red")], "question": "what?"}])


def test_each_request_is_answered_with_its_own_settings(lm, documents):
    lm.read_with(1)
    short = [{**d, "settings": {"max_new_tokens": 2}} if i % 2 else d for i, d in enumerate(documents)]
    lm.batch_size = 64
    answers = lm.generate_until(requests_of(lm, short))
    plain = lm.generate_until(requests_of(lm, documents))
    assert all(a.token_counts.output_tokens <= 2 for a in answers[1::2])
    assert [a.text for a in answers[::2]] == [a.text for a in plain[::2]]
    first = plain[0].text[1]
    assert texts(lm, documents[:1], settings={"max_new_tokens": 5, "until": [first]}) == [
        plain[0].text.split(first)[0].strip()
    ]


def test_beams_are_the_models_own_beams(lm, documents):
    lm.read_with(2)
    answers = texts(lm, documents[:6], settings={**GREEDY, "num_beams": 3})
    assert answers == texts(lm, documents[:6], batch_size=2, settings={**GREEDY, "num_beams": 3})


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, {"do_sample": False, "max_new_tokens": 64}),
        ({"temperature": 0, "do_sample": True, "top_p": 1.0}, {"do_sample": False, "max_new_tokens": 64}),
        ({"temperature": 0.5, "max_new_tokens": 3}, {"do_sample": True, "max_new_tokens": 3, "temperature": 0.5}),
        ({"do_sample": True, "top_p": 0.9}, {"do_sample": True, "max_new_tokens": 64, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False, "max_new_tokens": 64}),
        ({"num_beams": 4, "top_p": None}, {"do_sample": False, "max_new_tokens": 64, "num_beams": 4}),
    ],
)
def test_generation_settings_of_a_task(task, expected):
    assert settings_of(task) == expected


def test_tokens_and_time_are_counted(lm, documents):
    lm.read_with(2)
    reset_logged_metrics()
    answers = lm.generate_until(requests_of(lm, documents))
    (metrics,) = get_logged_metrics_history()
    assert metrics["image_tokens"] == 2
    assert metrics["images_encoded"] == len(COLORS)
    assert metrics["request_count"] == len(documents)
    # sink + 2 image tokens + one token for each byte of "Q: what?\nA:"
    assert answers[0].token_counts.input_tokens == 1 + 2 + len("Q: what?\nA:")
    assert metrics["total_gen_tokens"] == sum(a.token_counts.output_tokens for a in answers)
    assert 0 < metrics["encode_seconds"] < metrics["total_elapsed_time"]
    lm.read_with("full")
    reset_logged_metrics()
    lm.generate_until(requests_of(lm, documents))
    assert get_logged_metrics_history()[0]["image_tokens"] == 4


def test_wrong_arguments_are_named_with_what_is_allowed(lm, folder, tmp_path):
    for wrong in (5, 0, "half"):
        with pytest.raises(ConfigError, match="1 to 4 or full"):
            lm.read_with(wrong)
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        MmkdLmms(pretrained=folder, dtype="int4")
    with pytest.raises(ConfigError, match="whole number"):
        MmkdLmms(pretrained=folder, batch_size="auto")
    with pytest.raises(ConfigError, match=r"no model there|no config"):
        MmkdLmms(pretrained=str(tmp_path))


def test_model_args_are_read_as_the_command_line_writes_them(folder):
    more = {"batch_size": "16", "max_batch_size": None, "device": "cpu"}
    lm = MmkdLmms.create_from_arg_string(f"pretrained={folder},voco_tokens=2,blind=True", more)
    assert (lm.tokens, lm.blind, lm.batch_size, lm.device.type) == (2, True, 16, "cpu")
    lm = MmkdLmms.create_from_arg_string(f"pretrained={folder},voco_tokens=full,dtype=bfloat16", more)
    assert (lm.tokens, lm.blind, lm.loaded.model.dtype) == (None, False, torch.bfloat16)
    lm = MmkdLmms.create_from_arg_string(f"pretrained={folder}", more)
    assert lm.tokens == 4  # the model's own


def test_video_is_refused_with_the_task_named(lm):
    lm.read_with(1)
    (request,) = requests_of(lm, [{"images": [], "question": "what?"}])
    content = [{"type": "video", "url": "film.mp4"}, {"type": "text", "text": "what?"}]
    request.arguments = ("", lambda _: [{"role": "user", "content": content}], dict(GREEDY), 0, "task", "test")
    with pytest.raises(DataError, match=r"task task, question 0 comes with video"):
        lm.generate_until([request])


def test_bfloat16_answers_too(folder, documents):
    lm = MmkdLmms(pretrained=folder, dtype="bfloat16", voco_tokens=1)
    assert lm.loaded.model.dtype == torch.bfloat16
    assert len(texts(lm, documents)) == len(documents)
    lm.read_with("full")
    assert len(texts(lm, documents)) == len(documents)


def test_a_stock_llava_folder_is_scored_too(stock_llava, documents):
    lm = MmkdLmms(pretrained=stock_llava)
    answers = texts(lm, documents)
    assert answers == texts(lm, documents, batch_size=1)
    assert len(set(answers)) > 5
    with pytest.raises(ConfigError, match="can be read with full"):
        lm.read_with(1)
    lm.read_with("full", blind=True)
    assert len(set(texts(lm, documents))) <= len(QUESTIONS)
