"""Answers and rationales by their own mean losses, against the definition, in value and gradient."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import log_softmax, softmax
from transformers import CLIPImageProcessor

from mmkd.config.schema import RationalesSection
from mmkd.data.collate import Collator
from mmkd.data.records import Record, Turn
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.objectives import CrossEntropy, ForwardKL, token_losses
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer
from tests.objectives.sides import D_S, D_T, N, V, batch, close, gradients, outputs, random_targets, side

# Views of N = 23 tokens: (first, end, what a mean over it counts). Three answers, two rationales with lambda 0.5.
VIEWS = [(0, 1, 1.0), (1, 9, 0.5), (9, 12, 1.0), (12, 14, 1.0), (14, N, 0.5)]
ANSWERS = 3


def naive(token_losses_):  # [N]; the mean over answers of CE(answer) + lambda CE(rationale), each its own mean
    return sum(share * token_losses_[first:end].mean() for first, end, share in VIEWS) / ANSWERS


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_each_view_counts_by_its_mean_in_value_and_gradient(chunk):
    (hidden, head), (other, other_head) = side(D_S, V), side(D_T, V, seed=1)
    y = random_targets()
    shares = [torch.full((end - first,), share / (end - first), dtype=torch.float64) for first, end, share in VIEWS]
    # As the trainer hands them over: normalised by tokens, so scaled by tokens over answers.
    step = replace(batch(y, normalizer=float(N)), weights=torch.cat(shares) * N / ANSWERS)
    terms = [(CrossEntropy(chunk=chunk), 1.0), (ForwardKL(temperature=2.0, chunk=chunk), 0.7)]
    found = token_losses(terms, outputs(hidden, head), outputs(other, other_head), step)
    zs, zt = hidden @ head.weight.T, (other @ other_head.weight.T).detach()
    ce = -log_softmax(zs, -1)[torch.arange(N), y]
    p = softmax(zt / 2, -1)
    kl = 4 * (p * (p.log() - log_softmax(zs / 2, -1))).sum(-1)
    expected = naive(ce) + 0.7 * naive(kl)
    close([found.loss], [expected], torch.float64)
    close(gradients(found.loss, hidden, head.weight), gradients(expected, hidden, head.weight), torch.float64)
    # What is reported stays the mean over tokens.
    assert found.report["ce"].mean == pytest.approx(float(ce.mean().detach()))
    assert found.report["accuracy"].count == N


def collator(mode: str, packing: bool = False) -> Collator:
    tokenizer = byte_tokenizer(image=True)
    side_ = {"height": 8, "width": 8}
    images = CLIPImageProcessor(size=side_, do_center_crop=False, crop_size=side_)
    processor = MmkdProcessor(images, tokenizer, chat_template=chat_template("qa", tokenizer), image_tokens=4)
    return Collator(processor, 256, packing=packing, rationales=RationalesSection(mode=mode, weight=0.5))


def row(name: str, rationale: str | None) -> Record:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(len(name)).randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return Record(name, [Turn("user", "How many?"), Turn("assistant", "12", rationale)], [buffer.getvalue()])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("mode", ["separate", "answer_first", "rationale_first"])
def test_a_batch_weighs_every_answer_one_and_every_rationale_lambda(mode, packing):
    made = collator(mode, packing)([row("a", "There are twelve."), row("b", None)])
    weights, labels = made["loss_weights"], made["labels"]
    assert weights.shape == labels.shape
    assert ((weights > 0) == (labels != -100)).all()
    assert float(weights.sum()) == pytest.approx(2 + 0.5)
    assert int(made["loss_answers"]) == 2
    assert sorted(made["sample_ids"]) == (["a", "a", "b"] if mode == "separate" else ["a", "b"])
    assert len(made["image_tiles"]) == (len(made["sample_ids"]) if packing else 2)  # a twin's is its sample's


def test_separate_views_do_not_see_each_other():
    made = collator("separate", packing=True)([row("a", "There are twelve.")])
    assert made["input_ids"].shape[0] == 1
    assert made["segment_ids"].max() == 1
    assert made["image_segments"].tolist() == [0, 1]
