"""A tower gives its library's own features, whatever the library, the taps, the grid and the image size."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.models.vision_tower import Standardize, VisionTower
from mmkd.models.vision_trunks import build_model

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
CLIP_TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8, "patch_dropout": 0.5},
    "quick_gelu": True,
}
ROTARY_TINY = {"img_size": 56, "dynamic_img_size": True, "depth": 4, "embed_dim": 64, "num_heads": 2}
WINDOWS_TINY = {"img_size": 56, "depths": [2, 2, 1, 1], "embed_dim": 16, "num_heads": [1, 2, 2, 2]}
RESNET_TINY = {"embed_dim": 8, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}


def config(library, architecture, details=None, **fields):
    return MmkdVisionConfig(library=library, architecture=architecture, architecture_config=details or {}, **fields)


def transformers_config(family, image_size=56, **fields):
    return config(
        "transformers", family, SMALL | {"image_size": image_size, "patch_size": 14}, image_size=image_size, **fields
    )


# name -> a config of a small tower; every kind of trunk is among them
TOWERS = {
    "timm vit": config("timm", "test_vit", {"img_size": 64, "dynamic_img_size": True}, image_size=64),
    "timm vit with registers": config("timm", "test_vit3", {"img_size": 64, "dynamic_img_size": True}, image_size=64),
    "timm rotary": config("timm", "eva02_tiny_patch14_224", ROTARY_TINY, image_size=56),
    "timm cnn": config("timm", "test_resnet", image_size=64),
    "timm cnn that is cut": config("timm", "tf_efficientnet_lite0", taps=[1, 2], image_size=64),
    "timm cnn with names flattened": config("timm", "test_convnext", taps=[1, 3], image_size=64),
    "timm windows": config("timm", "swin_tiny_patch4_window7_224", WINDOWS_TINY, taps=[1], image_size=56),
    "open_clip vit": config("open_clip", "tiny", CLIP_TINY, image_size=32),
    "open_clip resnet": config("open_clip", "tiny resnet", RESNET_TINY, taps=[0, 2], image_size=64),
    "clip": transformers_config("clip_vision_model"),
    "siglip": transformers_config("siglip_vision_model"),
    "dinov2": transformers_config("dinov2"),
}


@pytest.mark.parametrize(
    ("hostile", "named"),
    [
        (config("timm", "test_resnet", {"pretrained": True, "pretrained_cfg": {"url": "http://host/w"}}), "pretrained"),
        (config("timm", "test_vit", {"pretrained_cfg_overlay": {"hf_hub_id": "a/b"}}), "pretrained_cfg_overlay"),
        (config("timm", "test_vit", {"checkpoint_path": "/etc/weights.pt"}), "checkpoint_path"),
        (config("timm", "hf-hub:someone/model"), "hf-hub:someone/model"),
        (config("timm", "local-dir:/somewhere"), "local-dir:/somewhere"),
        (
            config("open_clip", "x", {"embed_dim": 8, "vision_cfg": {"timm_model_name": "resnet18"}}),
            "vision_cfg.timm_model_name",
        ),
        (transformers_config("clip_vision_model"), "attn_implementation"),
    ],
)
def test_a_config_that_names_weights_or_code_of_its_own_is_refused_before_anything_is_fetched(
    hostile, named, monkeypatch
):
    def fetched(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fetched)
    if named == "attn_implementation":
        hostile.architecture_config["attn_implementation"] = "someone/kernel"
    with pytest.raises(ValueError, match=re.escape(named)):
        VisionTower(hostile)


def images(config, batch=2, height=None, width=None):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height or config.image_size, width or config.image_size, generator=generator)


def fresh(config, **fields):
    """A copy, since a tower fills in the derived fields of its config."""
    config = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def lively(module: nn.Module) -> nn.Module:
    """Weights that no default hides: biases not zero, scales not one, running statistics not standard."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and ("running_mean" in name or isinstance(tensor, nn.Parameter)):
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return module.eval()


def pair(config):
    """A library's whole model with random weights, and the tower made of a copy of it."""
    model = lively(build_model(config))
    return model, VisionTower(config, copy.deepcopy(model)).eval()


def as_sequence(maps):
    return maps.flatten(2).transpose(1, 2)  # [B, C, r, c] -> [B, r*c, C]


@torch.no_grad()
@pytest.mark.parametrize("tap", [1, 3, -2, -1])
@pytest.mark.parametrize("name", ["timm vit", "timm vit with registers", "timm rotary"])
def test_a_timm_vit_gives_timms_intermediate_layer(name, tap):
    model, tower = pair(fresh(TOWERS[name], taps=[tap]))
    x = images(tower.config)
    layer = tap if tap > 0 else len(model.blocks) + 1 + tap
    (expected,) = model.forward_intermediates(x, indices=[layer - 1], intermediates_only=True, norm=False)
    assert torch.equal(tower(x), as_sequence(expected))
    assert tower.stage_names == [f"layer{layer}"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "taps"),
    [
        ("tf_efficientnet_lite0", [1, 2, 3, 4]),
        ("tf_efficientnet_lite0", [2]),
        ("mobilenetv3_small_050", [0]),
        ("mobilenetv3_small_050", [3]),
        ("test_resnet", [-1]),
        ("test_convnext", [1, -1]),
    ],
)
def test_a_timm_cnn_gives_the_stages_of_features_only(architecture, taps):
    whole = lively(timm.create_model(architecture, features_only=True))
    tower = VisionTower(config("timm", architecture, taps=taps, image_size=64)).eval()
    state = whole.state_dict()
    tower.trunk.model.load_state_dict({name: state[name] for name in tower.trunk.model.state_dict()})
    whole, tower = whole.double(), tower.double()  # the tower's memory layout changes the order of sums
    x = images(tower.config).double()
    everything = whole(x)
    expected = [everything[tap] for tap in sorted(tap % len(everything) for tap in taps)]
    maps = tower.stages(x)
    assert [m.shape for m in maps] == [m.shape for m in expected]
    for found, wanted in zip(maps, expected):
        torch.testing.assert_close(found, wanted)
    assert sum(p.numel() for p in tower.parameters()) <= sum(p.numel() for p in whole.parameters())


@torch.no_grad()
def test_a_timm_window_transformer_gives_channels_first_maps():
    whole = lively(timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **WINDOWS_TINY))
    tower = VisionTower(fresh(TOWERS["timm windows"])).eval()
    state = whole.state_dict()
    persistent = {name for name in tower.trunk.model.state_dict() if name in state}
    tower.trunk.model.load_state_dict({name: state[name] for name in persistent}, strict=False)
    whole, tower = whole.double(), tower.double()
    x = images(tower.config).double()
    torch.testing.assert_close(tower.stages(x)[0], whole(x)[1].permute(0, 3, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("taps", [[1], [-2], [-1], [2, 3]])
def test_an_open_clip_vit_gives_its_own_intermediate_layers(taps):
    details = CLIP_TINY | {"vision_cfg": CLIP_TINY["vision_cfg"] | {"patch_dropout": 0.0}}
    model, tower = pair(config("open_clip", "tiny", details, taps=taps, image_size=32))
    x = images(tower.config)
    layers = sorted(tap if tap > 0 else 5 + tap for tap in taps)
    expected = model.forward_intermediates(x, indices=[layer - 1 for layer in layers], intermediates_only=True)
    assert torch.equal(tower(x), torch.cat([as_sequence(m) for m in expected["image_intermediates"]], dim=2))


@torch.no_grad()
@pytest.mark.parametrize("taps", [[0], [1, 3], [-1]])
def test_an_open_clip_resnet_gives_its_own_stages(taps):
    model, tower = pair(config("open_clip", "tiny resnet", RESNET_TINY, taps=taps, image_size=64))
    model, tower = model.double(), tower.double()
    x = images(tower.config).double()
    expected = model.forward_intermediates(x, indices=[t % 5 for t in taps], intermediates_only=True)
    for found, wanted in zip(tower.stages(x), expected["image_intermediates"]):
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
@pytest.mark.parametrize("taps", [[-2], [-1], [1], [1, -2]])
@pytest.mark.parametrize(("family", "prefix"), [("clip_vision_model", 1), ("siglip_vision_model", 0), ("dinov2", 1)])
def test_a_transformers_vit_gives_llavas_hidden_states(family, prefix, taps):
    tower_config = transformers_config(family, taps=taps)
    model, tower = pair(tower_config)
    x = images(tower_config)
    states = model(pixel_values=x, output_hidden_states=True).hidden_states
    expected = torch.cat([states[tap][:, prefix:] for tap in taps], dim=2)
    torch.testing.assert_close(tower(x), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_shapes_are_what_the_config_says_and_grid_foretells_them(name):
    tower = VisionTower(fresh(TOWERS[name])).eval()
    x = images(tower.config)
    found = tower.config
    assert tower(x).shape == (2, found.rows * found.cols, found.hidden_size)
    maps = tower.stages(x)
    assert len(maps) == len(tower.stage_names)
    assert tower.grid(found.image_size, found.image_size) == (found.rows, found.cols) == tuple(maps[-1].shape[-2:])


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_rebuilt_from_json_and_its_weights_without_its_model(name):
    tower = lively(VisionTower(fresh(TOWERS[name])))
    record = json.loads(tower.config.to_json_string())
    again = VisionTower(MmkdVisionConfig.from_dict(record))
    again.load_state_dict(tower.state_dict())
    x = images(tower.config)
    assert torch.equal(again.eval()(x), tower(x))
    assert again.config.to_dict() == tower.config.to_dict()


class WrapperConfig(PreTrainedConfig):
    model_type = "vision_tower_wrapper"
    sub_configs = {"vision_config": MmkdVisionConfig}  # noqa: RUF012
    vision_config: dict | MmkdVisionConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.vision_config, dict):
            self.vision_config = MmkdVisionConfig.from_dict(self.vision_config)
        super().__post_init__(**kwargs)


class Wrapper(PreTrainedModel):
    config_class = WrapperConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision_config)
        self.post_init()


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_from_pretrained_gives_the_same_features_to_the_last_bit(name, tmp_path):
    # Loading starts on the meta device: a buffer that is not in the file would come back as garbage.
    model = Wrapper(WrapperConfig(vision_config=fresh(TOWERS[name])))
    lively(model)
    model.save_pretrained(tmp_path)
    again = Wrapper.from_pretrained(tmp_path).eval()
    x = images(model.config.vision_config)
    assert torch.equal(again.vision_tower(x), model.vision_tower(x))


@torch.no_grad()
def test_siglips_27_by_27_grid_is_read_in_full():
    tower = VisionTower(transformers_config("siglip_vision_model", image_size=384)).eval()  # 384 = 27 * 14 + 6
    assert (tower.config.rows, tower.config.cols) == (27, 27)
    assert tower(images(tower.config, 1)).shape == (1, 729, 16)


@torch.no_grad()
def test_timms_27_by_27_grid_is_read_in_full():
    details = {"img_size": 384, "patch_size": 14, "dynamic_img_size": False}
    tower = VisionTower(config("timm", "test_vit", details, image_size=384)).eval()
    assert tower(images(tower.config, 1)).shape == (1, 729, tower.hidden_size)
    with pytest.raises(ValueError, match="384x384 only, not 380x384"):
        tower.grid(380, 384)


def mean_over_cells(map_, rows, cols):
    """Average pooling from its definition: cell r covers rows floor(r*H/rows) to ceil((r+1)*H/rows)."""
    height, width = map_.shape[-2:]
    cells = [
        map_[
            ..., r * height // rows : -(-(r + 1) * height // rows), c * width // cols : -(-(c + 1) * width // cols)
        ].mean((-2, -1))
        for r in range(rows)
        for c in range(cols)
    ]
    return torch.stack(cells, dim=1)  # [B, rows*cols, C]


@torch.no_grad()
@pytest.mark.parametrize("grid", [[8, 8], [9, 27], [5, 3], [1, 1]])
def test_an_odd_grid_is_pooled_to_exact_means(grid):
    tower = VisionTower(transformers_config("siglip_vision_model", image_size=384, grid=grid)).eval()
    x = images(tower.config, 1)
    (map_,) = tower.stages(x)
    assert map_.shape[-2:] == (27, 27)
    torch.testing.assert_close(tower(x), mean_over_cells(map_, *grid))
    assert (tower.config.rows, tower.config.cols) == tuple(grid) == tower.grid(384, 384)


@torch.no_grad()
@pytest.mark.parametrize("grid", [None, [3, 2]])
def test_taps_of_several_sizes_are_pooled_and_concatenated_from_shallow_to_deep(grid):
    tower = VisionTower(config("timm", "test_resnet", taps=[3, 1], grid=grid, image_size=96)).eval()
    x = images(tower.config)
    shallow, deep = tower.stages(x)
    assert shallow.shape[-1] > deep.shape[-1]
    rows, cols = grid or deep.shape[-2:]
    expected = torch.cat([mean_over_cells(shallow, rows, cols), mean_over_cells(deep, rows, cols)], dim=2)
    torch.testing.assert_close(tower(x), expected)
    assert tower.hidden_size == shallow.shape[1] + deep.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm vit", "timm cnn", "timm cnn that is cut", "clip", "siglip", "dinov2"])
def test_images_that_are_not_square_give_the_grid_foretold(name):
    tower = VisionTower(fresh(TOWERS[name])).eval()
    height, width = (84, 42) if tower.config.library == "transformers" else (96, 48)
    rows, cols = tower.grid(height, width)
    assert rows > cols
    x = images(tower.config, 1, height, width)
    assert tower(x).shape == (1, rows * cols, tower.hidden_size)
    # Row-major: changing the lowest rows of pixels changes the lower half of the grid the most.
    changed = x.clone()
    changed[..., -height // 6 :, :] += 3
    change = (tower(changed) - tower(x)).abs().sum(2).view(rows, cols).sum(1)
    assert change[rows // 2 :].sum() > change[: rows // 2].sum()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (65, 33), (123, 77)])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "tf_efficientnet_lite0"])
def test_the_grid_of_a_cnn_is_foretold_for_any_size(architecture, size):
    tower = VisionTower(config("timm", architecture, taps=[2], image_size=64)).eval()
    assert tower.grid(*size) == tuple(tower.stages(torch.zeros(1, 3, *size))[0].shape[-2:])


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (100, 75), (97, 128)])
@pytest.mark.parametrize("tap", [0, 1, 4])
def test_the_grid_of_clips_resnet_is_foretold_for_any_size(tap, size):
    tower = VisionTower(config("open_clip", "tiny resnet", RESNET_TINY, taps=[tap], image_size=64)).eval()
    assert tower.grid(*size) == tuple(tower.stages(torch.zeros(1, 3, *size))[0].shape[-2:])


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_kept_gets_a_gradient_and_has_a_shape(name):
    tower = VisionTower(fresh(TOWERS[name])).train()
    x = images(tower.config)
    tower(x).square().mean().backward()
    idle = [n for n, p in tower.named_parameters() if p.grad is None]
    assert not idle
    # DeepSpeed takes neither 0-dim (CLIP's logit_scale) nor non-contiguous parameters.
    assert all(p.dim() > 0 and p.is_contiguous() for p in tower.parameters())


def test_the_shallower_taps_get_gradients_too():
    tower = VisionTower(transformers_config("clip_vision_model", taps=[1, 3]))
    first, _ = tower.stages(images(tower.config))
    first.square().mean().backward()
    layers = tower.trunk.model.encoder.layers
    assert layers[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert layers[2].mlp.fc1.weight.grad is None


@pytest.mark.parametrize("name", TOWERS)
def test_the_librarys_model_runs_as_a_module_call(name):
    # ZeRO-3 gathers what a module owns around that module's call, and only there.
    tower = VisionTower(fresh(TOWERS[name])).eval()
    calls = []
    tower.trunk.model.register_forward_hook(lambda *_: calls.append(name))
    with torch.no_grad():
        tower(images(tower.config))
    assert calls == [name]


@torch.no_grad()
def test_a_copy_of_a_tower_shares_nothing_with_it():
    tower = lively(VisionTower(transformers_config("clip_vision_model", taps=[1, 2])))
    x = images(tower.config)
    before = tower(x)
    other = copy.deepcopy(tower)
    for p in other.parameters():
        p.zero_()
    assert torch.equal(tower(x), before)
    assert not torch.equal(other(x), before)
    assert not any(module._forward_hooks for module in tower.modules())


@torch.no_grad()
def test_patch_dropout_never_breaks_the_grid():
    tower = VisionTower(fresh(TOWERS["open_clip vit"])).train()
    assert tower(images(tower.config)).shape == (2, 16, 64)


@torch.no_grad()
def test_a_bf16_tower_takes_fp32_images():
    tower = VisionTower(transformers_config("dinov2")).to(torch.bfloat16)
    assert tower(images(tower.config)).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_clip_tower_needs_neither_timm_nor_open_clip():
    code = (
        "import sys; sys.modules['timm'] = sys.modules['open_clip'] = None\n"
        "from mmkd.models.configuration_vision import MmkdVisionConfig\n"
        "from mmkd.models.vision_tower import VisionTower\n"
        f"t = VisionTower(MmkdVisionConfig.from_dict({transformers_config('clip_vision_model').to_dict()!r}))\n"
        "print(t.config.rows, t.config.cols)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["4", "4"], run.stderr


@pytest.mark.parametrize("taps", [[0], [5], [-5], [2, -3], []])
def test_taps_that_a_vit_does_not_have_are_refused_with_those_it_has(taps):
    if not taps:
        assert VisionTower(transformers_config("clip_vision_model", taps=taps)).stage_names == ["layer3"]
        return
    with pytest.raises(ValueError, match="different numbers from 1 to 4, or from -4 to -1"):
        VisionTower(transformers_config("clip_vision_model", taps=taps))


@pytest.mark.parametrize("taps", [[5], [-6], [0, 0]])
def test_stages_that_a_cnn_does_not_have_are_refused_with_those_it_has(taps):
    with pytest.raises(ValueError, match="different numbers from 0 to 4, or from -5 to -1"):
        VisionTower(config("timm", "test_resnet", taps=taps, image_size=64))


def test_sizes_that_a_family_cannot_take_are_refused():
    fixed = VisionTower(fresh(TOWERS["open_clip vit"]))
    with pytest.raises(ValueError, match="32x32 only, not 64x32"):
        fixed.grid(64, 32)
    whole_patches = VisionTower(fresh(TOWERS["timm vit"]))
    with pytest.raises(ValueError, match="not a whole number of 16-pixel patches"):
        whole_patches.grid(60, 64)
    with pytest.raises(ValueError, match="smaller than one patch"):
        VisionTower(transformers_config("clip_vision_model")).grid(8, 56)


def test_models_that_cannot_be_towers_are_refused():
    with pytest.raises(ValueError, match="neither a plain ViT nor a model read by stages"):
        VisionTower(config("timm", "deit_tiny_patch16_224"))
    with pytest.raises(ValueError, match="no vision tower of model_type 'vit'"):
        VisionTower(config("transformers", "vit"))
    with pytest.raises(ValueError, match="not one of timm, open_clip, transformers"):
        VisionTower(config("torchvision", "resnet18"))


def test_standardized_channels_have_mean_0_and_deviation_1_and_constant_ones_stay():
    layer = Standardize(3)
    features = torch.randn(50, 4, 3) * torch.tensor([3.0, 0.1, 0.0]) + torch.tensor([10.0, -2.0, 5.0])
    assert torch.equal(layer(features), features)  # until it is measured it changes nothing
    layer.measure(features)
    out = layer(features).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)
