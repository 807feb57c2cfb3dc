"""A live teacher that processes images otherwise than the student sees its own pixels of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from PIL import Image

from mmkd.data.collate import Collator
from mmkd.data.records import Record, Turn
from mmkd.data.teacher_side import TeacherSide
from mmkd.models import MmkdProcessor
from mmkd.objectives import Needs
from mmkd.teachers.live import LiveTeacher
from mmkd.teachers.reading import answer_batch
from tests.train.conftest import SIDE, save_tiny_model


@pytest.fixture(scope="module")
def large_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the student's tokenizer that looks at images of twice the side."""
    folder = tmp_path_factory.mktemp("large_teacher")
    save_tiny_model(folder, seed=5, layers=3, voco=None, image_size=2 * SIDE)
    return folder


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (3 * SIDE, 3 * SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_it_answers_is_what_it_answers_alone(student, large_teacher):
    processor = MmkdProcessor.from_pretrained(student)
    teacher = LiveTeacher(str(large_teacher), torch.float32, "sdpa", torch.device("cpu"))
    image, turns = picture(0), [Turn("user", "what?"), Turn("assistant", "a red circle")]
    record = Record("a", turns, [image], "t", "t")
    batch = Collator(processor, 256, teacher=TeacherSide(processor, teacher.processor, own_tokens=False))([record])
    assert set(batch["teacher"]) == {"pixel_values", "image_tiles", "image_rows", "image_segments"}
    batch["normalizer"] = 1.0
    answers = answer_batch(batch)
    found = teacher.outputs(None, batch, answers, Needs(teacher=True))  # type: ignore[arg-type]
    logits = found.head(found.answer_hidden)

    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]},
    ]
    text = teacher.processor.apply_chat_template(messages, tokenize=False)
    alone = teacher.processor(text=[text], images=[Image.open(io.BytesIO(image))], return_tensors="pt")
    assert alone["pixel_values"].shape[-1] == 2 * SIDE
    with torch.inference_mode():
        whole = teacher.model(**alone).logits[0]
    windows = alone["input_ids"][0].unfold(0, len(answers.answer_ids), 1)
    [start] = (windows == answers.answer_ids).all(1).nonzero()[:, 0].tolist()
    torch.testing.assert_close(logits, whole[start - 1 : start - 1 + len(logits)], rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize(("zero", "packing"), [(2, True)])
def test_two_ranks_learn_from_it_what_one_plain_process_learns(config, large_teacher, zero, packing):
    def settings(name: str) -> dict:
        stage = {"steps": 6, "micro_batch_size": 4 if packing and name == "whole" else 2}
        made = config(name, zero=zero, stage=stage, objectives=[{"name": "forward_kl"}])
        made["teacher"] = {"kind": "live", "model": str(large_teacher)}
        made["data"] |= {"packing": packing and name == "whole"}
        return made

    whole = settings("whole")
    assert ranks.run(whole) == pytest.approx(ranks.one_plain_process(settings("plain")), rel=1e-4)
    on_policy = settings("own")
    on_policy["data"] |= {"packing": True}
    on_policy["stages"][0] |= {"on_policy": {"share": 1.0, "max_new_tokens": 4}, "steps": 2}
    assert np.isfinite(ranks.run(on_policy)).all()
