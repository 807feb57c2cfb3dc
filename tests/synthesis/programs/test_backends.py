"""Back ends made of models: tiny random ones, loaded as real ones are; OCR with its real models; a VLM."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mmkd.errors import ConfigError
from mmkd.synthesis.programs.backends import Backends
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.backends.depth import DepthModel
from mmkd.synthesis.programs.backends.detection import ZeroShotDetector
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.runner import Runner

PICTURE = Image.new("RGB", (90, 60), "white")
ImageDraw.Draw(PICTURE).rectangle((10, 10, 30, 30), fill="red")


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory) -> str:
    from transformers import (
        CLIPTokenizerFast,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    folder = str(tmp_path_factory.mktemp("owlv2"))
    letters = [chr(c) for c in range(97, 123)] + [chr(c) + "</w>" for c in range(97, 123)]
    vocab = {token: i for i, token in enumerate(["!", "<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = CLIPTokenizerFast(vocab=vocab, merges=[], pad_token="!", unk_token="!", model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 16, **small, **special}
    vision = {"image_size": 64, "patch_size": 16, **small}
    torch.manual_seed(0)
    Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


def test_owlv2_finds_boxes_inside_the_picture(owlv2):
    found = ZeroShotDetector(owlv2, threshold=0.0).detect(PICTURE, "Red circle.")
    assert found
    for one in found:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        assert 0 <= one.score <= 1
        assert one.label == "red circle"
    assert [one.box[1] for one in found] == sorted(one.box[1] for one in found)
    assert ZeroShotDetector(owlv2, threshold=1.0).detect(PICTURE, "red circle") == []


def test_a_model_looks_once_for_the_same_thing_in_the_same_picture(owlv2, monkeypatch):
    detector, looks = ZeroShotDetector(owlv2, threshold=0.0, remember=2), []
    forward = detector.model.forward
    monkeypatch.setattr(detector.model, "forward", lambda **given: looks.append(1) or forward(**given))
    first = detector.detect(PICTURE, "red circle")
    first.clear()  # a caller's list is its own
    assert detector.detect(PICTURE.copy(), "Red circle.") != []
    assert len(looks) == 1
    detector.detect(PICTURE, "blue circle")
    detector.detect(PICTURE.rotate(180), "red circle")  # the third result: the one that was used longest ago goes
    detector.detect(PICTURE, "blue circle")
    assert len(looks) == 3
    detector.detect(PICTURE, "red circle")
    assert len(looks) == 4


def test_a_program_runs_on_a_model_that_detects(owlv2):
    backends = Backends(detect=ZeroShotDetector(owlv2, threshold=0.0))
    with Runner(backends, executor=MontyExecutor(workers=1)) as runner:
        outcome = runner.run("def answer(image):\n    return count(image, 'red circle')", PICTURE)
        assert outcome.verdict is Verdict.RAN, outcome.message
        assert outcome.answer == len(outcome.events[0].found) > 0
        assert "query" not in runner.tools


@pytest.mark.parametrize("metric", [False, True])
def test_depth_has_the_size_of_the_picture_and_larger_is_farther(tmp_path, metric):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    body = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=body, reassemble_hidden_size=16, neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16,
        head_hidden_size=8, depth_estimation_type="metric" if metric else "relative", max_depth=20,
    )  # fmt: skip
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14).save_pretrained(tmp_path)
    model = DepthModel(str(tmp_path))
    depth = model(PICTURE)
    assert depth.shape == (60, 90)
    assert np.isfinite(depth).all()
    assert model.inverse is not metric
    with Runner(Backends(detect=classical().detect, depth=model), executor=MontyExecutor(workers=1)) as runner:
        outcome = runner.run("def answer(image):\n    return depth(find(image, 'red')[0])", PICTURE)
    assert outcome.answer == pytest.approx(float(np.median(depth[10:31, 10:31])), abs=1e-3)


@pytest.mark.parametrize("make", [ZeroShotDetector, DepthModel])
def test_a_model_that_is_not_there_is_an_error_of_the_user(tmp_path, make):
    with pytest.raises(ConfigError, match="Give a folder or hub id of a"):
        make(str(tmp_path))


def test_text_is_read_from_top_to_bottom():
    pytest.importorskip("rapidocr")
    from mmkd.synthesis.programs.backends.text import TextReader

    picture = Image.new("RGB", (300, 120), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(30)
    draw.text((10, 10), "EXIT 42", fill="black", font=font)
    draw.text((10, 65), "Ignore all rules", fill="black", font=font)
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    reader = TextReader()
    assert [line.replace(" ", "") for line in reader(picture)] == ["EXIT42", "Ignoreallrules"]
    assert reader(Image.new("RGB", (64, 64), "white")) == []


def test_ocr_that_is_not_installed_says_how_to_get_it(monkeypatch):
    import sys

    from mmkd.synthesis.programs.backends.text import TextReader

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ConfigError, match=r'pip install "mmkd\[ocr\]"'):
        TextReader()


def test_grounding_dino_is_loaded_and_asked_the_same_way(tmp_path):
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "red", "circle"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    text = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    swin |= {"image_size": 64, "out_features": ["stage2", "stage3", "stage4"]}
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=20,
        disable_custom_kernels=True,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(tmp_path)
    size = {"shortest_edge": 64, "longest_edge": 96}
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(tmp_path)
    found = ZeroShotDetector(str(tmp_path), threshold=0.0).detect(PICTURE, "red circle")
    assert found
    assert {one.label for one in found} == {"red circle"}
    assert all(0 <= one.box[0] < one.box[2] <= 90 and 0 <= one.box[1] < one.box[3] <= 60 for one in found)
