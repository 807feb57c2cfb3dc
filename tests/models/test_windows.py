"""Decoders with a sliding window: what a row is read as hangs on its own tokens, not on the rows beside it."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import IMAGE, SINK, K, features, pixels
from transformers import Gemma2Config, Gemma3TextConfig, MistralConfig

WINDOW = 7
SLIDING = {
    "all layers": MistralConfig(**tiny._GROUPED, sliding_window=WINDOW),
    "gemma2": Gemma2Config(**tiny.SIZES, **tiny._HEADS, query_pre_attn_scalar=8, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**tiny.SIZES, **tiny._HEADS, query_pre_attn_scalar=8, sliding_window=WINDOW),
}
TEXT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(params=SLIDING)
def build(request, monkeypatch):
    def made(attention: str = "sdpa", **options):
        monkeypatch.setitem(tiny.DECODERS, "sliding", SLIDING[request.param])
        model = tiny.build("sliding", **options)
        if request.param == "gemma2" and attention != "eager":
            pytest.skip("gemma2 caps its scores, which the others do not")
        model.set_attn_implementation(attention)
        return model

    return made


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def read(model, feats, rows, text, tokens=None, mask=None):
    blocks = model.blocks(feats, [1] * len(rows), rows, [0] * len(rows), len(text), tokens)
    return model.read(model.prefix(blocks), text, torch.ones_like(text) if mask is None else mask)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [None, K])
def test_a_row_is_read_alike_alone_and_beside_a_row_of_more_images(build, attention, tokens):
    model = build(attention)
    feats = features(model, 4)
    alone = read(model, feats[:1], [0], TEXT, tokens)
    beside = read(model, feats, [0, 1, 1, 1], TEXT.repeat(2, 1), tokens)
    close(beside[:1], alone)
    no_image = read(model, None, [], TEXT, tokens)
    close(read(model, feats, [1, 1, 1, 1], TEXT.repeat(2, 1), tokens)[:1], no_image)
    # The window is there: what stands before it does not count, but through the layers that see more.
    far = feats.clone()
    far[0, 0] += 1
    assert not torch.equal(read(model, far[:1], [0], TEXT, tokens), alone)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_image_is_compressed_alike_alone_and_beside_one_of_more_tiles(build, attention):
    model = build(attention)
    feats = features(model, 4)
    alone = model.encode(model.blocks(feats[:1], [1], [0], [0], 1, K))[1]
    beside = model.encode(model.blocks(feats, [1, 3], [0, 1], [0, 0], 2, K))[1]
    for (key, value), (other_key, other_value) in zip(alone, beside, strict=True):
        close(other_key[:1], key)
        close(other_value[:1], value)


def test_a_bias_of_nothing_keeps_the_decoders_own_window(build):
    plain, biased = build(), build(mass_bias=True)
    with torch.no_grad():
        biased.voco.bias.weight.zero_()
    biased.load_state_dict(plain.state_dict(), strict=False)
    feats = features(plain, 3)
    found, expected = (read(model, feats, [0, 0, 0], TEXT, K) for model in (biased, plain))
    close(found, expected)


def test_packed_samples_are_read_as_each_alone(build):
    model = build()
    feats, text = features(model, 3), torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    alone = [read(model, feats[:1], [0], text[:, :4]), read(model, feats[1:], [0, 0], text[:, 4:])]
    blocks = model.blocks(feats, [1] * 3, [0] * 3, [0, 1, 1], 1, None, samples=2)
    positions, segments = torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), torch.tensor([[0] * 4 + [1] * 3])
    packed = model.read(model.prefix(blocks), text, torch.ones_like(text), positions, segments)
    close(packed, torch.cat(alone, 1))


@pytest.mark.parametrize("tokens", [None, K])
@pytest.mark.parametrize("options", [{}, {"mass_bias": True}])
def test_answers_do_not_hang_on_the_prompts_beside(build, tokens, options):
    model = build(**options)
    shown = tokens or 4
    prompts = [[SINK, *[IMAGE] * shown, 5, 6, 7, 8, 9], [SINK, *[IMAGE] * 3 * shown, 8], [SINK, 11, 12]]
    pictures, settings = pixels(4), {"voco_tokens": tokens, "max_new_tokens": 6, "do_sample": False}
    settings["eos_token_id"] = None
    own = [pictures[:1], pictures[1:], None]
    alone = [
        model.generate(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), images, **settings)[
            0, len(ids) :
        ]
        for ids, images in zip(prompts, own, strict=True)
    ]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    together = model.generate(ids, mask, pictures, **settings)[:, longest:]
    assert together.tolist() == torch.stack(alone).tolist()


def test_an_implementation_that_takes_no_mask_is_refused_and_only_where_one_is_needed(build):
    model = build("flex_attention")
    feats = features(model, 4)
    with torch.no_grad():
        read(model, feats[:1], [0], TEXT)
        with pytest.raises(ValueError, match="batches that are longer than a sliding window need a mask"):
            read(model, feats, [0, 1, 1, 1], TEXT.repeat(2, 1))
