"""Two-pass VoCo against its definition: one masked causal pass. Blindness, padding, back ends, elastic k."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import SINK, K, features, masked_pass, pixels, prompt, two_passes

from mmkd.train.stage import checkpoint_layers

TEXT = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def model():
    return tiny.build()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [{}, {"preset": "faithful"}, {"mass_bias": True}, {"pooled": True}],
    ids=["default", "faithful", "mass bias", "pooled"],
)
def test_every_preset_equals_its_masked_single_pass(options, attention):
    model = tiny.build(**options)
    model.set_attn_implementation(attention)
    for images, k in ((1, 1), (2, 3)):
        feats = features(model, images)
        expected = masked_pass(model, feats, TEXT, k)
        torch.testing.assert_close(two_passes(model, feats, TEXT, k), expected, rtol=1e-4, atol=1e-5)


def test_the_faithful_preset_hides_the_sink_from_text_that_has_an_image_and_only_from_it():
    kept, hidden = tiny.build(), tiny.build(preset="faithful")
    hidden.load_state_dict(kept.state_dict())
    feats, text = features(kept, 1), TEXT.expand(2, -1)
    a, b = (two_passes(m, feats, text, K, rows=[0]) for m in (kept, hidden))
    assert (a[0] - b[0]).abs().max() > 1e-3
    torch.testing.assert_close(a[1], b[1])


def test_the_mass_bias_learns(model):
    model = tiny.build(mass_bias=True)
    hidden = two_passes(model, features(model, 1), TEXT, 3)
    (hidden * torch.randn_like(hidden)).sum().backward()
    gradient = model.voco.bias.weight.grad
    assert (gradient[:3].abs() > 1e-6).all()
    assert (gradient[3:] == 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_back_ends_agree(model, attention):
    model.set_attn_implementation("eager")
    reference = two_passes(model, features(model, 2), TEXT, K)
    model.set_attn_implementation(attention)
    with torch.no_grad():  # flex has no backward on a CPU
        torch.testing.assert_close(two_passes(model, features(model, 2), TEXT, K), reference, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("sdpa")


def test_flex_attention_answers_as_the_others_do(model):
    inputs = prompt(K, [5, 6, 7], [8])
    settings = {"voco_tokens": K, "max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, pixel_values=pixels(2), **settings)
    model.set_attn_implementation("flex_attention")
    found = model.generate(**inputs, pixel_values=pixels(2), **settings)
    model.set_attn_implementation("sdpa")
    assert found.tolist() == expected.tolist()


def test_a_back_end_that_would_drop_the_mask_is_refused():
    model = tiny.build(mass_bias=True)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), pytest.raises(ValueError, match="sdpa"):
        two_passes(model, features(model, 1), TEXT, K)
    with pytest.raises(ValueError, match="sdpa"):
        model.generate(**prompt(K, [5]), pixel_values=pixels(1), voco_tokens=K, max_new_tokens=2)


@pytest.mark.gpu
def test_flash_attention_reads_what_the_others_read():
    pytest.importorskip("flash_attn")
    model = tiny.build(dtype=torch.bfloat16).cuda()
    read = {}
    for attention in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            read[attention] = two_passes(model, features(model, 2).cuda(), TEXT.cuda(), K)
    scale = read["sdpa"].abs().max()
    torch.testing.assert_close(read["flash_attention_2"] / scale, read["sdpa"] / scale, rtol=0, atol=2e-2)


def test_activation_checkpointing_changes_neither_values_nor_gradients():
    results = []
    for checkpointing in (False, True):
        model = tiny.build()
        if checkpointing:
            checkpoint_layers(model)
        model.train()
        feats = features(model, 2).requires_grad_()
        runs = []
        layer = model.language_model.model.layers[0]
        # Before and not after: a second run stops as soon as it has all that backward needs.
        layer.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        hidden = two_passes(model, feats, TEXT, 3)
        torch.manual_seed(3)
        (hidden * torch.randn_like(hidden)).sum().backward()
        results.append((hidden.detach(), feats.grad, {n: p.grad for n, p in model.named_parameters()}, len(runs)))
    (plain, plain_feats, plain_grads, once), (again, again_feats, again_grads, twice) = results
    assert (once, twice) == (2, 4)  # encode and read, each run again in backward
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(again_feats, plain_feats)
    for name, gradient in plain_grads.items():
        if gradient is not None:
            torch.testing.assert_close(again_grads[name], gradient, msg=name)


def test_fewer_tokens_are_a_slice_of_more(model):
    whole = model.compress(pixels(2))
    for k in range(1, K):
        fewer, sliced = model.compress(pixels(2), tokens=k), whole.keep(k)
        for (ka, va), (kb, vb) in zip(fewer.layers, sliced.layers, strict=True):
            torch.testing.assert_close(ka, kb)
            torch.testing.assert_close(va, vb)
        assert fewer.identity == sliced.identity
    with pytest.raises(ValueError, match=r"1\.\.4"):
        model.compress(pixels(1), tokens=K + 1)


def test_the_order_of_frames_matters(model):
    feats = features(model, 3)
    forwards = two_passes(model, feats, TEXT, K)
    assert (forwards - two_passes(model, feats.flip(0), TEXT, K)).abs().max() > 1e-3
    assert (forwards - two_passes(model, feats[[1, 0, 2]], TEXT, K)).abs().max() > 1e-3


def test_what_is_kept_of_an_image_depends_on_no_other_image(model):
    feats = features(model, 2)
    changed = feats.clone()
    changed[0] += 1.0

    def kept(f):
        return model.encode(model.blocks(f, [1, 1], [0, 0], [0, 0], 1, K))[1]

    for layer, ((ka, va), (kb, vb)) in enumerate(zip(kept(feats), kept(changed), strict=True)):
        torch.testing.assert_close(ka[1], kb[1], rtol=0, atol=0)
        torch.testing.assert_close(va[1], vb[1], rtol=0, atol=0)
        # The first layer's keys come from the compression tokens' own embeddings, the others' from the image too.
        assert ((ka[0] - kb[0]).abs().max() > 1e-3) == (layer > 0)


def test_pooled_tokens_hold_their_own_image_from_the_first_layer_on():
    model = tiny.build(pooled=True)
    feats = features(model, 2)
    changed = feats.clone()
    changed[0] += 1.0
    ours, theirs = (model.encode(model.blocks(f, [1, 1], [0, 0], [0, 0], 1, K))[1][0] for f in (feats, changed))
    assert (ours[0][0] - theirs[0][0]).abs().max() > 1e-3
    assert torch.equal(ours[0][1], theirs[0][1])


def test_text_meets_an_image_through_the_kept_tokens_alone(model):
    feats = features(model, 1).requires_grad_()
    blocks = model.blocks(feats, [1], [0], [0], 1, K)
    sinks, kept = model.encode(blocks)
    cut = [(k.detach(), v.detach()) for k, v in kept]
    hidden = model.read(model.lay_out(blocks, sinks, cut), TEXT, torch.ones_like(TEXT))
    (gradient,) = torch.autograd.grad(hidden.square().sum() + 0.0 * feats.sum(), feats)
    assert (gradient == 0).all()


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
