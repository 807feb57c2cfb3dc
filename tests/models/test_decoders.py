"""VoCo on every family of decoders: by its definition, decoded token by token, moved in a cache."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import IMAGE, SINK, K
from transformers import CohereConfig, SmolLM3Config

from mmkd.errors import ConfigError
from mmkd.models.rotation import otherwise_turned
from mmkd.models.voco import CompressionTokens
from mmkd.objectives import AttentionRelations, VocoAttention
from mmkd.train.task import DistillTask


@pytest.fixture(scope="module", params=list(tiny.DECODERS))
def model(request):
    return tiny.build(request.param)


@pytest.fixture
def name(request) -> str:
    return request.node.callspec.params["model"]


def usual_attention(model) -> None:
    """sdpa, except for Gemma 2, whose soft cap sdpa does not have."""
    model.set_attn_implementation("sdpa" if model.language_model._supports_sdpa else "eager")


@pytest.mark.parametrize(("images", "k"), [(1, K), (2, 3)])
def test_two_passes_equal_the_masked_single_pass_in_value_and_gradient(model, images, k):
    text = torch.tensor([[5, 6, 7, 8, 9]])
    model.set_attn_implementation("eager")
    results = []
    for run in (tiny.two_passes, tiny.masked_pass):
        feats = tiny.features(model, images).requires_grad_()
        model.zero_grad()
        hidden = run(model, feats, text, k)
        torch.manual_seed(3)  # a random direction: the final norm makes the squared length constant
        (hidden * torch.randn_like(hidden)).sum().backward()
        results.append((hidden.detach(), feats.grad, model.voco.embedding.weight.grad[:k].clone()))
    for ours, definition in zip(*results, strict=True):
        scale = definition.abs().max()
        assert scale > 1e-3
        # transformers runs softmax, norms and RoPE in fp32
        torch.testing.assert_close(ours / scale, definition / scale, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["keep_sink", "faithful"])
def test_presets_and_score_biases_equal_the_masked_single_pass_too(model, preset, monkeypatch):
    torch.manual_seed(4)
    width = model.config.text_config.hidden_size
    monkeypatch.setattr(model, "voco", CompressionTokens(K, width, mass_bias=True).to(model.dtype))
    monkeypatch.setattr(model.config, "voco", model.config.voco | {"preset": preset, "mass_bias": True})
    model.set_attn_implementation("eager")
    text, feats = torch.tensor([[5, 6, 7]]), tiny.features(model, 2)
    ours, definition = tiny.two_passes(model, feats, text, 3), tiny.masked_pass(model, feats, text, 3)
    scale = definition.abs().max()
    torch.testing.assert_close(ours / scale, definition / scale, rtol=1e-4, atol=1e-5)


def test_answers_decoded_token_by_token_are_those_of_whole_forwards(model):
    usual_attention(model)
    inputs = tiny.prompt(K, [5, 6, 7], [8])
    out = model.generate(
        **inputs, pixel_values=tiny.pixels(2), voco_tokens=K, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 8, dtype=torch.long)], dim=1)
    logits = model(input_ids=out, attention_mask=mask, pixel_values=tiny.pixels(2), voco_tokens=K).logits
    assert logits[:, -9:-1].argmax(-1).tolist() == out[:, -8:].tolist()


def test_full_vision_answers_are_those_of_the_decoder_on_one_sequence(model):
    usual_attention(model)
    feats = model.image_features(tiny.pixels(1))
    n = feats.shape[1]
    inputs = tiny.prompt(n, [5, 6, 7])
    sequence = torch.cat([model.get_input_embeddings()(torch.tensor([[SINK]])), feats], dim=1)
    sequence = torch.cat([sequence, model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))], dim=1)
    expected = model.head(model.decoder(inputs_embeds=sequence).last_hidden_state)
    logits = model(**inputs, pixel_values=tiny.pixels(1)).logits
    torch.testing.assert_close(logits, expected)
    first = model.generate(
        **inputs, pixel_values=tiny.pixels(1), max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(first.logits[0], expected[:, -1].float(), rtol=1e-4, atol=1e-4)
    assert int((inputs["input_ids"] == IMAGE).sum()) == n


def test_two_cached_images_are_moved_to_their_places_or_refused(model, name):
    usual_attention(model)
    inputs = tiny.prompt(2 * K, [5, 6, 7])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cache = model.compress(tiny.pixels(2))
    if name in tiny.CANNOT_MOVE:
        with pytest.raises(ValueError, match="pass pixel_values instead"):
            model.generate(**inputs, voco_cache=cache, **settings)
        return
    fresh = model.generate(**inputs, pixel_values=tiny.pixels(2), voco_tokens=K, **settings)
    cached = model.generate(**inputs, voco_cache=cache, **settings)
    torch.testing.assert_close(cached.logits[0], fresh.logits[0], rtol=1e-3, atol=1e-3)
    swapped = model.generate(**inputs, voco_cache=cache.select([1, 0]), **settings)
    assert (swapped.logits[0] - fresh.logits[0]).abs().max() > 1e-3


def test_one_cached_image_needs_no_moving(model):
    usual_attention(model)
    inputs = tiny.prompt(2, [5, 6, 7], [8, 9])
    settings = {"max_new_tokens": 4, "do_sample": False}
    once = model.generate(**inputs, voco_cache=model.compress(tiny.pixels(1)).keep(2), **settings)
    each = model.generate(**inputs, pixel_values=tiny.pixels(1).expand(2, -1, -1, -1), voco_tokens=2, **settings)
    assert once.tolist() == each.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (tiny.DECODERS["llama"], []),
        (tiny.DECODERS["qwen2"], []),
        (tiny.DECODERS["phi"], []),  # turns a part of its channels
        (tiny.DECODERS["gpt2"], []),  # turns nothing, and says so
        (CohereConfig(**tiny.SIZES, num_key_value_heads=2), [0, 1, 2]),  # interleaved channels
        (SmolLM3Config(**tiny.SIZES, num_key_value_heads=2, no_rope_layers=[1, 1, 0]), [2]),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_layers_that_turn_keys_otherwise_are_found(config, wrong, dtype, monkeypatch):
    monkeypatch.setitem(tiny.DECODERS, "this", config)
    model = tiny.build("this", dtype=dtype)
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("k_proj.bias"):  # keys of a hundred, as in trained Qwen2: roundings are as large
                bias.normal_(std=100.0)
    assert otherwise_turned(model) == wrong


def test_objectives_that_turn_queries_and_keys_back_refuse_layers_that_do_not(monkeypatch):
    config = SmolLM3Config(**tiny.SIZES, num_key_value_heads=2, no_rope_layers=[1, 1, 0])
    monkeypatch.setitem(tiny.DECODERS, "this", config)
    model = tiny.build("this", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"layers 2 of the student's decoder \(smollm3\) .* relations: \[vv\]"):
        DistillTask(model, [(AttentionRelations(), 1.0)])
    with pytest.raises(ConfigError, match=r"layers 2 of the student's decoder"):
        DistillTask(model, [(VocoAttention(queries="teacher"), 1.0)])
    model.train()
    DistillTask(model, [(AttentionRelations(relations=["vv"]), 1.0), (VocoAttention(), 1.0)])
    DistillTask(model, [(AttentionRelations(layers=[[0, 1]]), 1.0)])
    assert model.language_model.training
