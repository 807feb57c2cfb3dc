"""Compress once, ask many; keep on disk; refuse what another model or setting made."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import K, pixels, prompt

from mmkd.models import VocoCache

GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return tiny.build()


def test_one_compressed_image_answers_many_questions_as_the_pixels_do(model):
    inputs = prompt(2, [5, 6, 7], [8, 9])
    once = model.generate(**inputs, voco_cache=model.compress(pixels(1), tokens=K).keep(2), **GREEDY)
    each = model.generate(**inputs, pixel_values=pixels(1).expand(2, -1, -1, -1), voco_tokens=2, **GREEDY)
    assert once.tolist() == each.tolist()


def test_asking_needs_no_vision_tower_and_no_vision_token(model):
    images = pixels(1)
    cache = model.compress(images)
    before = model.generate(**prompt(K, [5, 6, 7]), voco_cache=cache, **GREEDY).tolist()
    images.add_(1.0)  # the picture changes after it was compressed
    runs, hooks = [], []
    for part in (model.vision_tower, model.projector):
        hooks.append(part.register_forward_hook(lambda *_: runs.append(1)))
    assert model.generate(**prompt(K, [5, 6, 7]), voco_cache=cache, **GREEDY).tolist() == before
    assert not runs
    for hook in hooks:
        hook.remove()
    assert cache.layers[0][0].shape == (1, 2, 1 + K, 8)  # of every layer: the sink and K tokens, no vision token


def test_asking_does_not_change_the_cache(model):
    cache = model.compress(pixels(2))
    kept = copy.deepcopy(cache.layers)
    model.generate(**prompt(2 * K, [5, 6, 7]), voco_cache=cache, num_beams=2, **GREEDY)
    for (ka, va), (kb, vb) in zip(kept, cache.layers, strict=True):
        assert torch.equal(ka, kb)
        assert torch.equal(va, vb)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mass_bias", [False, True])
def test_a_cache_survives_the_disk_to_the_last_bit(tmp_path, dtype, mass_bias):
    model = tiny.build(mass_bias=mass_bias, dtype=dtype)
    cache = model.compress(pixels(2))
    cache.save(str(tmp_path / "images.voco"))
    loaded = VocoCache.load(str(tmp_path / "images.voco"))
    assert loaded.identity == cache.identity
    assert loaded.image_tokens.tolist() == cache.image_tokens.tolist() == [4, 4]
    assert mass_bias == (loaded.bias is not None)
    if mass_bias:
        assert torch.equal(loaded.bias, cache.bias)
    for (ka, va), (kb, vb) in zip(loaded.layers, cache.layers, strict=True):
        assert torch.equal(ka, kb)
        assert torch.equal(va, vb)
    inputs = prompt(K, [5, 6], [7])
    expected = model.generate(**inputs, voco_cache=cache, **GREEDY).tolist()
    assert model.generate(**inputs, voco_cache=loaded, **GREEDY).tolist() == expected


@pytest.mark.parametrize("tokens", [1, 3, K])
def test_bytes_of_an_image_are_those_of_its_tokens(model, tokens):
    cache = model.compress(pixels(2), tokens=tokens)
    assert cache.nbytes == tokens * 2 * 3 * 2 * 8 * 8  # K and V, layers, heads, width, bytes of a double


def weights(model):
    model.language_model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1.0


def projector(model):
    model.projector.linear_1.bias.data[0] += 1.0


def processor(model):
    model.config.processor_hash = "another"


def rope(model):
    parameters = model.config.text_config.rope_parameters
    model.config.text_config.rope_parameters = {**parameters, "rope_theta": 5.0}


def dtype(model):
    model.to(torch.float32)


def preset(model):
    model.config.voco = {**model.config.voco, "preset": "faithful"}


def most_tokens(model):
    model.config.voco = {**model.config.voco, "tokens": 5}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (weights, "model"),
        (projector, "model"),
        (processor, "processor"),
        (rope, "rope"),
        (dtype, "dtype"),
        (preset, "preset"),
        (most_tokens, "most_tokens"),
    ],
)
def test_a_cache_is_refused_by_whatever_differs_from_what_made_it(model, change, field, tmp_path):
    model.compress(pixels(1)).save(str(tmp_path / "image.voco"))
    cache = VocoCache.load(str(tmp_path / "image.voco"))
    other = copy.deepcopy(model)
    change(other)
    with pytest.raises(ValueError, match=f"another model or setting; compress again.*{field}: cache"):
        other.generate(**prompt(K, [5, 6]), voco_cache=cache, **GREEDY)
    assert model.generate(**prompt(K, [5, 6]), voco_cache=cache, **GREEDY).shape == (1, 1 + K + 2 + 6)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="not a VoCo cache"):
        VocoCache.load(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("missing", ["layers.1.values", "image_tokens", "identity"])
def test_a_cache_that_lacks_a_part_is_refused_by_name(model, tmp_path, missing):
    model.compress(pixels(1)).save(str(tmp_path / "image.voco"))
    with safe_open(tmp_path / "image.voco", framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors.pop(missing, None)
    metadata.pop(missing, None)
    save_file(tensors, tmp_path / "part.voco", metadata=metadata)
    with pytest.raises(ValueError, match=rf"part\.voco is not a VoCo cache.*{missing}"):
        VocoCache.load(str(tmp_path / "part.voco"))


def test_half_a_file_is_refused_as_well(model, tmp_path):
    model.compress(pixels(1)).save(str(tmp_path / "image.voco"))
    (tmp_path / "half.voco").write_bytes((tmp_path / "image.voco").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"half\.voco is not a VoCo cache, nor any whole"):
        VocoCache.load(str(tmp_path / "half.voco"))


def test_caches_of_different_k_or_model_are_not_joined(model):
    cache, other = model.compress(pixels(1)), copy.deepcopy(model)
    processor(other)
    for stranger in (cache.keep(2), other.compress(pixels(1))):
        with pytest.raises(ValueError, match="another model or setting"):
            VocoCache.join([cache, stranger])
    assert len(VocoCache.join([cache, cache])) == 2


def test_more_tokens_than_a_cache_holds_are_refused(model):
    with pytest.raises(ValueError, match="holds 2 tokens"):
        model.compress(pixels(1), tokens=2).keep(3)
