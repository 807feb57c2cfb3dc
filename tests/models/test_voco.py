"""Two-pass VoCo against its definition: one masked causal pass."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from mmkd.models.configuration_mmkd import MmkdConfig
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.voco_cache import VocoCache

IMAGE, SINK, K = 99, 1, 4


@pytest.fixture(scope="module")
def model() -> MmkdForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    vision = MmkdVisionConfig(
        library="timm",
        architecture="test_vit",
        architecture_config={"img_size": 32},
        image_size=32,
        taps=[-2],
        grid=None,
    )
    config = MmkdConfig(
        vision_config=vision,
        text_config=text,
        projector={"kind": "linear"},
        voco={"tokens": K, "preset": "keep_sink", "embeddings": "separate", "mass_bias": False},
        image_token_id=IMAGE,
        sink_token_id=SINK,
    )
    return MmkdForConditionalGeneration(config).double().eval()


def features(model: MmkdForConditionalGeneration, images: int, tokens: int = 5) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(images, tokens, model.config.text_config.hidden_size, dtype=torch.double)


def two_passes(model, feats, text, k, rows=None):
    rows = rows if rows is not None else [0] * len(feats)
    prefix = model.prefix(model.blocks(feats, [1] * len(feats), rows, [0] * len(rows), len(text), K))
    if k < K:
        blocks = model.blocks(feats, [1] * len(feats), rows, [0] * len(rows), len(text), K)
        prefix = model.lay_out(blocks, *model.encode(blocks), k)
    return model.read(prefix, text, torch.ones_like(text))


def masked_pass(model, feats, text, k):
    """The definition: every image block then the text in one sequence, an explicit mask, positions 0, 1, 2, ..."""
    embed = model.get_input_embeddings()
    sink, c = embed(torch.tensor([SINK])), model.voco(K)
    kinds, parts = [], []
    for i, image in enumerate(feats):
        parts += [sink, image, c]
        kinds += [("sink", i, 0)] + [("V", i, j) for j in range(len(image))] + [("C", i, j) for j in range(K)]
    parts.append(embed(text[0]))
    kinds += [("T", -1, j) for j in range(text.shape[1])]

    def allow(q: int, key: int) -> bool:
        (kind_q, image_q, _), (kind_k, image_k, order_k) = kinds[q], kinds[key]
        if key > q:
            return False
        if kind_q != "T":
            return image_k == image_q
        return kind_k == "T" or (kind_k == "C" and order_k < k) or (kind_k == "sink" and image_k == 0)

    length = len(kinds)
    see = torch.tensor([[allow(q, key) for key in range(length)] for q in range(length)])
    mask = torch.zeros(length, length, dtype=torch.double).masked_fill(~see, torch.finfo(torch.double).min)
    out = model.decoder(
        inputs_embeds=torch.cat(parts)[None],
        attention_mask=mask[None, None],
        position_ids=torch.arange(length)[None],
        use_cache=False,
    )
    return out.last_hidden_state[:, -text.shape[1] :]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("k", [1, 3, K])
def test_two_passes_equal_the_masked_single_pass_in_value_and_gradient(model, images, k):
    text = torch.tensor([[5, 6, 7, 8, 9]])
    model.set_attn_implementation("eager")
    results = []
    for run in (two_passes, masked_pass):
        feats = features(model, images).requires_grad_()
        model.zero_grad()
        hidden = run(model, feats, text, k)
        torch.manual_seed(3)  # a random direction: the final norm makes the squared length constant
        (hidden * torch.randn_like(hidden)).sum().backward()
        results.append((hidden.detach(), feats.grad, model.voco.embedding.weight.grad[:k].clone()))
    for ours, definition in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, definition, rtol=1e-4, atol=1e-5
        )  # transformers runs softmax, norms and RoPE in fp32
        assert definition.abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_back_ends_agree(model, attention):
    text = torch.tensor([[5, 6, 7]])
    model.set_attn_implementation("eager")
    reference = two_passes(model, features(model, 2), text, K)
    model.set_attn_implementation(attention)
    torch.testing.assert_close(two_passes(model, features(model, 2), text, K), reference, rtol=1e-4, atol=1e-5)


def test_the_order_of_images_matters(model):
    text, feats = torch.tensor([[5, 6, 7]]), features(model, 2)
    swapped = two_passes(model, feats.flip(0), text, K)
    assert (two_passes(model, feats, text, K) - swapped).abs().max() > 1e-3


def test_a_row_does_not_see_the_image_of_another_row_and_text_only_rows_mix_in(model):
    text = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    feats = features(model, 2)
    hidden = two_passes(model, feats, text, K, rows=[0, 2])
    changed = feats.clone()
    changed[0] += 1.0
    again = two_passes(model, changed, text, K, rows=[0, 2])
    assert (hidden[0] - again[0]).abs().max() > 1e-3
    torch.testing.assert_close(hidden[1:], again[1:])
    plain = model.decoder(inputs_embeds=model.get_input_embeddings()(torch.tensor([[SINK, 5, 6, 7]]))).last_hidden_state
    torch.testing.assert_close(hidden[1], plain[0, 1:])


def test_padding_on_either_side_changes_nothing(model):
    feats = features(model, 1)
    prefix = model.prefix(model.blocks(feats, [1], [0], [0], 1, K))
    bare = model.read(prefix, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    left = model.read(prefix, torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]]))[:, 2:]
    right = model.read(prefix, torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]))[:, :3]
    torch.testing.assert_close(left, bare)
    torch.testing.assert_close(right, bare)


def pixels(images: int) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(images, 3, 32, 32, dtype=torch.double)


def prompt(k: int, *questions: list[int]) -> dict[str, torch.Tensor]:
    longest = max(map(len, questions))
    ids = [[0] * (longest - len(q)) + [SINK] + [IMAGE] * k + q for q in questions]
    mask = [[0] * (longest - len(q)) + [1] * (1 + k + len(q)) for q in questions]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("k", [1, K])
def test_token_by_token_decoding_equals_full_forwards_for_64_tokens(model, k):
    inputs = prompt(k, [5, 6, 7])
    out = model.generate(
        **inputs, pixel_values=pixels(1), voco_tokens=k, max_new_tokens=64, do_sample=False, eos_token_id=None
    )
    logits = model(input_ids=out, pixel_values=pixels(1), voco_tokens=k).logits[
        0, inputs["input_ids"].shape[1] - 1 : -1
    ]
    assert out.shape[1] == inputs["input_ids"].shape[1] + 64
    assert logits.argmax(-1).tolist() == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_one_compressed_image_answers_many_questions_as_the_pixels_do(model):
    inputs = prompt(2, [5, 6, 7], [8, 9])
    cache = model.compress(pixels(1), tokens=K).keep(2)
    settings = {"max_new_tokens": 8, "do_sample": False}
    once = model.generate(**inputs, voco_cache=cache, **settings)
    each = model.generate(**inputs, pixel_values=pixels(1).expand(2, -1, -1, -1), voco_tokens=2, **settings)
    assert once.tolist() == each.tolist()


def test_two_cached_images_are_moved_to_their_places(model):
    inputs = prompt(2 * K, [5, 6, 7])
    settings = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    fresh = model.generate(**inputs, pixel_values=pixels(2), voco_tokens=K, **settings)
    cached = model.generate(**inputs, voco_cache=model.compress(pixels(2)), **settings)
    torch.testing.assert_close(cached.logits[0], fresh.logits[0], rtol=1e-4, atol=1e-4)


def test_beams_work_on_a_compressed_image(model):
    inputs = prompt(K, [5, 6, 7], [8, 9])
    out = model.generate(
        **inputs, pixel_values=pixels(2), voco_tokens=K, num_beams=3, num_return_sequences=2, max_new_tokens=4
    )
    assert out.shape[0] == 4
    assert out[0, : inputs["input_ids"].shape[1]].tolist() == inputs["input_ids"][0].tolist()


def test_a_cache_survives_the_disk_and_is_refused_by_another_model(model, tmp_path):
    path = str(tmp_path / "image.voco")
    model.compress(pixels(1)).save(path)
    cache = VocoCache.load(path)
    inputs = prompt(K, [5, 6])
    before = model.generate(**inputs, voco_cache=cache, max_new_tokens=3, do_sample=False)
    direct = model.generate(**inputs, pixel_values=pixels(1), voco_tokens=K, max_new_tokens=3, do_sample=False)
    assert before.tolist() == direct.tolist()
    weight = model.voco.embedding.weight
    with torch.no_grad():
        weight.add_(1.0)
    try:
        with pytest.raises(ValueError, match="another model"):
            model.generate(**inputs, voco_cache=cache, max_new_tokens=3)
    finally:
        with torch.no_grad():
            weight.sub_(1.0)


def test_placeholders_that_do_not_fit_the_images_are_refused(model):
    with pytest.raises(ValueError, match="placeholders"):
        model.generate(**prompt(3, [5]), pixel_values=pixels(1), voco_tokens=K)
