"""Projectors: how many tokens they give, and which numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mmkd.config.schema import ProjectorSection
from mmkd.models.projector import build_projector

KINDS = ["linear", "mlp", "pixel_shuffle", "average_pool", "resampler"]


def build(rows, cols, in_features=6, out_features=8, **section):
    return build_projector(ProjectorSection(**section).model_dump(), in_features, out_features, rows, cols)


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (27, 27), (3, 5), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tokens_is_known_beforehand(kind, rows, cols):
    projector = build(rows, cols, kind=kind, queries=5, heads=2)
    out = projector(torch.randn(2, rows * cols, 6))
    assert out.shape == (2, projector.tokens, 8)
    merged = -(-rows // 2) * -(-cols // 2)
    assert projector.tokens == {"pixel_shuffle": merged, "average_pool": merged, "resampler": 5}.get(kind, rows * cols)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_and_so_does_the_tower(kind):
    projector = build(3, 3, kind=kind, heads=2)
    features = torch.randn(2, 9, 6, requires_grad=True)
    projector(features).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    assert (features.grad.abs().sum(2) > 0).all()


def test_two_layers_are_llavas_projector_with_its_names():
    llava = LlavaMultiModalProjector(
        LlavaConfig(
            vision_config=CLIPVisionConfig(hidden_size=6, num_attention_heads=2),
            text_config=LlamaConfig(hidden_size=8, num_attention_heads=2),
            vision_feature_layer=-2,
        )
    )
    projector = build(2, 2, kind="mlp", layers=2)
    projector.load_state_dict(llava.state_dict())
    features = torch.randn(2, 4, 6)
    assert torch.equal(projector(features), llava(features))


def test_linear_is_one_matrix_and_mlp_has_the_layers_asked_for():
    linear = build(2, 2, kind="linear")
    features = torch.randn(1, 4, 6)
    torch.testing.assert_close(linear(features), features @ linear.linear_1.weight.T + linear.linear_1.bias)
    deep = build(2, 2, kind="mlp", layers=3)
    expected = deep.linear_3(F.gelu(deep.linear_2(F.gelu(deep.linear_1(features)))))
    assert torch.equal(deep(features), expected)


def test_pixel_shuffle_by_hand():
    # Patches 0..15 of a 4x4 grid, two channels: n and n + 100.
    projector = build(4, 4, in_features=2, kind="pixel_shuffle", factor=2)
    n = torch.arange(16.0)
    found = projector.shuffle(torch.stack([n, n + 100], dim=1)[None])
    assert found[0].tolist() == [
        [0, 100, 1, 101, 4, 104, 5, 105],
        [2, 102, 3, 103, 6, 106, 7, 107],
        [8, 108, 9, 109, 12, 112, 13, 113],
        [10, 110, 11, 111, 14, 114, 15, 115],
    ]


def test_pixel_shuffle_pads_an_odd_grid_with_zeros_below_and_to_the_right():
    projector = build(3, 3, in_features=1, kind="pixel_shuffle", factor=2)
    found = projector.shuffle(torch.arange(1.0, 10.0).view(1, 9, 1))
    assert found[0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]


def test_average_pool_counts_only_the_patches_that_are_there():
    projector = build(3, 3, in_features=1, kind="average_pool", factor=2)
    found = projector.pool(torch.arange(1.0, 10.0).view(1, 9, 1))
    assert found[0, :, 0].tolist() == [3.0, 4.5, 7.5, 9.0]


def test_average_pool_keeps_rows_and_columns_apart_on_a_grid_that_is_not_square():
    projector = build(2, 4, in_features=1, kind="average_pool", factor=2)
    assert projector.pool(torch.arange(8.0).view(1, 8, 1))[0, :, 0].tolist() == [2.5, 4.5]


def test_the_resampler_is_attention_by_its_definition():
    torch.manual_seed(0)
    p = build(2, 3, kind="resampler", queries=3, heads=2).double()
    features = torch.randn(1, 6, 6, dtype=torch.double)
    patches = p.norm_patches(p.input(features) + p.places)[0]
    query, key, value = p.query(p.norm_queries(p.queries)), p.key(patches), p.value(patches)
    read = []
    for head in (slice(0, 4), slice(4, 8)):
        read.append((query[:, head] @ key[:, head].T / 4**0.5).softmax(-1) @ value[:, head])
    latents = p.queries + p.output(torch.cat(read, dim=1))
    torch.testing.assert_close(p(features)[0], latents + p.mlp(p.norm_mlp(latents)))


def test_the_resampler_knows_where_a_patch_stands():
    p = build(2, 3, kind="resampler", queries=3, heads=2)
    features = torch.randn(1, 6, 6)
    assert not torch.allclose(p(features), p(features.flip(1)))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="heads = 3 does not divide the decoder's width 8"):
        build(2, 2, kind="resampler", heads=3)
    with pytest.raises(ValueError, match="'qformer' is not one of linear, mlp"):
        build_projector({"kind": "qformer"}, 6, 8, 2, 2)
