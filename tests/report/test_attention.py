"""Attention maps against attention itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd.compose import load, parts
from mmkd.report.attention import as_seen, attention_to_image, grid_of, look
from mmkd.report.parts import model_parts
from tests.evaluate.conftest import tiny_model

K, N = 4, 4


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(K)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def test_weights_are_those_of_eager_attention_over_the_block(tiny):
    model, processor = tiny
    pixels, _ = processor.image_tensors([picture()])
    found = attention_to_image(model, pixels)
    blocks = model.blocks(model.image_features(pixels), [1], [0], [0], batch=1, tokens=K)
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.decoder(inputs_embeds=blocks.embeds, position_ids=blocks.positions, output_attentions=True)
    model.set_attn_implementation(before)
    definition = torch.stack([layer[0, :, 1 + N :, 1 : 1 + N] for layer in out.attentions])  # [layers, H, K, n]
    assert found.shape == definition.shape == (2, 4, K, N)
    torch.testing.assert_close(found, definition, rtol=1e-4, atol=1e-6)
    assert model.config.text_config._attn_implementation == before


def test_another_picture_gives_other_weights_and_none_exceeds_all(tiny):
    model, processor = tiny
    first, second = (attention_to_image(model, processor.image_tensors([picture(seed)])[0]) for seed in (0, 1))
    assert (first - second).abs().max() > 1e-4
    assert 0 < first.sum(-1).max() < 1


def test_the_strongest_cell_of_every_map_is_drawn_strongest(tiny):
    model, processor = tiny
    looked = look(model, processor, picture(), "p")
    weights = attention_to_image(model, processor.image_tensors([picture()])[0]).mean((0, 1))  # [K, n]
    drawn = [float(value) for value in re.findall(r'fill-opacity="([0-9.]+)"', looked.mean)]
    for token in range(K):
        cells = drawn[token * N : (token + 1) * N]
        assert cells.index(max(cells)) == int(weights[token].argmax())
        assert max(cells) == pytest.approx(0.9)
    assert len(looked.layers) == 2
    assert looked.shares == pytest.approx(weights.sum(-1).tolist())


def test_the_picture_drawn_is_the_one_the_model_sees(tiny):
    _, processor = tiny
    image = picture()
    seen = as_seen(processor.image_tensors([image])[0][-1], processor.image_processor)
    assert np.abs(np.asarray(seen, dtype=int) - np.asarray(image, dtype=int)).max() <= 1


def test_the_grid_is_that_after_the_projector(tiny):
    model, _ = tiny
    before = model.config.projector
    try:
        model.config.vision_config.rows, model.config.vision_config.cols = 27, 26
        model.config.projector = {"kind": "pixel_shuffle", "factor": 2}
        assert grid_of(model) == (14, 13)
        model.config.projector = {"kind": "mlp", "factor": 2}
        assert grid_of(model) == (27, 26)
        model.config.projector = {"kind": "resampler"}
        assert grid_of(model) is None
    finally:
        model.config.projector = before
        model.config.vision_config.rows, model.config.vision_config.cols = 2, 2


def test_parts_counted_from_the_config_are_those_of_the_loaded_model(models):
    folder = models / "student"
    counted = {part.name: part.parameters for part in model_parts(folder, [])}
    loaded = parts(load(folder).model)
    assert counted == {name: sum(p.numel() for p in parameters) for name, parameters in loaded.items()}
    trained = {part.name: part.trained for part in model_parts(folder, [{"name": "align", "trainable": ["projector"]}])}
    assert trained["projector"] == "align"
    assert trained["language"] == "frozen"
