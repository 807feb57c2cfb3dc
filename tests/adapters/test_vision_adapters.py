"""Vision adapters: names, weights, image processors and errors. The towers themselves: tests/models."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from mmkd_adapters.sources import card_license
from mmkd_adapters.vision.hf import HfVisionAdapter
from mmkd_adapters.vision.lite0 import read_published_lite0
from mmkd_adapters.vision.open_clip import OpenClipAdapter
from mmkd_adapters.vision.timm import TimmAdapter
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from mmkd import assets
from mmkd.contracts import Spec, adapter
from mmkd.errors import AssetError, ConfigError

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
PICTURE = Image.fromarray(np.arange(60 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 90, 3))


def load(text, **options):
    spec = Spec.parse(text)
    return adapter("vision", spec)().load(
        spec, **{"image_size": None, "taps": None, "grid": None, "pretrained": True} | options
    )


def pixels(parts):
    return parts.image_processor(images=[PICTURE], return_tensors="pt")["pixel_values"]


def test_the_adapters_are_found_by_their_sources():
    found = {source: adapter("vision", Spec(source, "x")) for source in ("timm", "open_clip", "hf")}
    assert found == {"timm": TimmAdapter, "open_clip": OpenClipAdapter, "hf": HfVisionAdapter}


@torch.no_grad()
@pytest.mark.parametrize(
    ("source", "options", "rows", "cols", "channels"),
    [
        ("timm:test_vit", {}, 10, 10, 64),
        ("timm:test_vit", {"image_size": 96, "grid": (2, 3)}, 2, 3, 64),
        ("timm:tf_efficientnet_lite0", {"image_size": 128, "taps": [2, 3, 4], "grid": (4, 4)}, 4, 4, 472),
        ("timm:test_resnet", {"image_size": 64}, 2, 2, 96),
        ("open_clip:ViT-B-32/openai", {"image_size": 64, "taps": [1]}, 2, 2, 768),
        ("open_clip:ViT-B-16-SigLIP/webli", {"image_size": 32, "taps": [1]}, 2, 2, 768),
    ],
)
def test_size_taps_and_grid_reach_the_tower_and_the_processor(source, options, rows, cols, channels):
    parts = load(source, pretrained=False, **options)
    config = parts.tower.config
    x = pixels(parts)
    assert x.shape == (1, 3, config.image_size, config.image_size)
    assert parts.tower(x).shape == (1, rows * cols, channels)
    assert (config.rows, config.cols, config.hidden_size) == (rows, cols, channels)
    json.dumps(config.to_dict())
    assert not parts.tower.training


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0():
    """timm's whole classifier with the published weights."""
    if not assets.is_present(assets.ASSETS["efficientnet-lite0"]):
        pytest.skip("the asset efficientnet-lite0 is not in the cache; bring it with: mmkd assets")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(read_published_lite0(assets.path("efficientnet-lite0")))  # strict: every name is mapped
    return model.eval()


@torch.no_grad()
def test_the_published_lite0_weights_see_a_cat(lite0):
    data = pytest.importorskip("skimage.data")
    parts = load("timm:tf_efficientnet_lite0")
    x = parts.image_processor(images=[Image.fromarray(data.chelsea())], return_tensors="pt")["pixel_values"]
    names = ImageNetInfo()
    best = [names.index_to_description(int(i)) for i in lite0(x)[0].topk(3).indices]
    assert all("cat" in name for name in best), best


@torch.no_grad()
def test_the_lite0_tower_has_the_features_of_the_classifier(lite0):
    parts = load("timm:tf_efficientnet_lite0", image_size=64, taps=[-1])
    x = pixels(parts)
    last = lite0.blocks(lite0.bn1(lite0.conv_stem(x)))  # [1, 320, 2, 2]
    torch.testing.assert_close(parts.tower(x), last.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-4)
    assert parts.license == "Apache-2.0"


def test_timms_mean_deviation_and_filter_reach_the_processor():
    processor = load("timm:tf_efficientnet_lite0", pretrained=False).image_processor
    published = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (published.mean, published.std)
    assert published.interpolation == "bicubic"
    assert processor.resample == Image.Resampling.BICUBIC


def test_the_whole_image_is_squashed_so_that_nothing_at_the_border_is_lost():
    picture = Image.new("RGB", (100, 50))
    picture.paste((255, 255, 255), (0, 0, 5, 50))
    parts = load("timm:test_resnet", image_size=40, pretrained=False)
    x = parts.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert (x[0, 0, :, 0] > x[0, 0, :, 20]).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnt18", "timm has no 'resnt18'. Did you mean resnet18"),
        ("timm:resnet18.tv_in1", "Did you mean resnet18.tv_in1k"),
        ("timm:resnet18@main", "timm keeps no revisions"),
        ("timm:deit_tiny_patch16_224", "neither a plain ViT nor"),
    ],
)
def test_a_wrong_timm_name_is_refused_with_the_nearest(source, message):
    with pytest.raises(ConfigError, match=message):
        load(source, pretrained=False)


@pytest.mark.parametrize("taps", [[7], [0, 0]])
@pytest.mark.parametrize("pretrained", [True, False])
def test_taps_that_are_not_there_are_refused_before_any_weight_is_looked_for(taps, pretrained):
    with pytest.raises(ConfigError, match="different numbers from 0 to 4"):
        load("timm:resnet18", taps=taps, pretrained=pretrained)


def test_weights_that_nobody_published_are_refused():
    with pytest.raises(ConfigError, match="timm publishes no weights"):
        load("timm:resnetblur18")


def test_weights_that_are_neither_cached_nor_online_are_an_asset_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="timm:test_vit cannot be loaded"):
        load("timm:test_vit")


# --- open_clip --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A small model of open_clip under a name of its own, with its config file."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / "mmkd-tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return open_clip.create_model("mmkd-tiny-clip").eval(), folder


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("tap", [-2, -1])
def test_a_local_open_clip_checkpoint_gives_open_clips_patch_tokens(tiny_clip, suffix, tap):
    model, folder = tiny_clip
    file = folder / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file)
    parts = load(f"open_clip:mmkd-tiny-clip/{file}", taps=[tap])
    x = pixels(parts)
    intermediates = model.visual.forward_intermediates(x, indices=[3 + tap], intermediates_only=True)
    (expected,) = intermediates["image_intermediates"]
    assert torch.equal(parts.tower(x), expected.flatten(2).transpose(1, 2))
    assert not any("logit_scale" in name or "text" in name for name, _ in parts.tower.named_parameters())


@torch.no_grad()
def test_open_clips_positions_are_resized_as_open_clip_does_it(tiny_clip):
    model, folder = tiny_clip
    file = folder / "resized.pt"
    torch.save(model.state_dict(), file)
    parts = load(f"open_clip:mmkd-tiny-clip/{file}", image_size=48, taps=[1])
    theirs = open_clip.create_model("mmkd-tiny-clip", str(file), force_image_size=48).eval()
    x = pixels(parts)
    (expected,) = theirs.visual.forward_intermediates(x, indices=[0], intermediates_only=True)["image_intermediates"]
    assert expected.shape[-2:] == (6, 6)
    assert torch.equal(parts.tower(x), expected.flatten(2).transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize(("timm_name", "pool"), [("test_vit", ""), ("test_vit", "token"), ("test_convnext", "avg")])
def test_a_tower_that_open_clip_takes_from_timm_keeps_its_weights(tmp_path, timm_name, pool):
    name = f"mmkd-tiny-{timm_name}-{pool}"
    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "timm_model_name": timm_name,
            "timm_pool": pool,
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1},
        "custom_text": True,
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    parts = load(f"open_clip:{name}/{tmp_path / 'weights.pt'}", taps=[1])
    assert parts.tower.config.library == "timm"
    x = pixels(parts)
    trunk = model.visual.trunk
    if timm_name == "test_vit":
        (expected,) = trunk.forward_intermediates(x, indices=[0], intermediates_only=True)
    else:
        expected = trunk.forward_intermediates(x, intermediates_only=True)[1]
    torch.testing.assert_close(parts.tower(x), expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_openais_weights_get_openais_activation_and_preprocessing():
    # The name ViT-L-14-336 says nothing of it, the tag does; LLaVA's CLIP is this one.
    parts = load("open_clip:ViT-B-32/openai", pretrained=False, taps=[1])
    assert parts.tower.config.architecture_config["quick_gelu"] is True
    blocks = parts.tower.trunk.model.transformer.resblocks
    assert type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert parts.license == "MIT"
    other = load("open_clip:ViT-B-32/laion2b_s34b_b79k", pretrained=False, taps=[1])
    assert other.tower.config.architecture_config["quick_gelu"] is False


def test_open_clips_processor_does_what_open_clips_own_transform_does():
    parts = load("open_clip:ViT-B-32/openai", pretrained=False, taps=[1], image_size=64)
    theirs = open_clip.image_transform(64, is_train=False)
    difference = (pixels(parts)[0] - theirs(PICTURE)).abs()
    assert difference.max() < 0.05  # torchvision's resize on tensors rounds to whole grey levels elsewhere


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("open_clip:ViT-B-31/openai", ConfigError, "open_clip has no 'ViT-B-31'. Did you mean ViT-B-32"),
        ("open_clip:ViT-B-32", ConfigError, r"which weights\? .*openai"),
        ("open_clip:ViT-B-32/opnai", ConfigError, "ViT-B-32 has no 'opnai'. Did you mean openai"),
        ("open_clip:ViT-B-32//no/such/file.pt", AssetError, "there is no file /no/such/file.pt"),
        ("open_clip:ViT-B-32/openai@main", ConfigError, "open_clip keeps no revisions"),
    ],
)
def test_a_wrong_open_clip_source_is_refused_with_what_there_is(source, error, message):
    with pytest.raises(error, match=message):
        load(source)


def test_a_checkpoint_of_another_model_is_an_asset_error(tiny_clip, tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(AssetError, match=r"other\.pt cannot be loaded"):
        load(f"open_clip:mmkd-tiny-clip/{tmp_path / 'other.pt'}")


# --- transformers -----------------------------------------------------------------------------------------------------


def save_whole_clip(folder):
    text = SMALL | {"vocab_size": 20, "max_position_embeddings": 8}
    model = CLIPModel(CLIPConfig(vision_config=SMALL | {"image_size": 42, "patch_size": 14}, text_config=text))
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(folder)
    return model.vision_model


def save_vision_clip(folder):
    model = save_whole_clip(folder / "whole")
    vision = CLIPVisionModel(model.config)
    vision.load_state_dict(model.state_dict())
    vision.save_pretrained(folder)
    return vision


def save_whole_siglip(folder):
    text = SMALL | {"vocab_size": 20, "max_position_embeddings": 8}
    model = SiglipModel(SiglipConfig(vision_config=SMALL | {"image_size": 42, "patch_size": 14}, text_config=text))
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 42, "width": 42}).save_pretrained(folder)
    return model.vision_model


def save_dinov2(folder):
    model = Dinov2Model(Dinov2Config(**SMALL | {"image_size": 70, "patch_size": 14}))
    model.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}).save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("save", "prefix"), [(save_whole_clip, 1), (save_vision_clip, 1), (save_whole_siglip, 0), (save_dinov2, 1)]
)
def test_a_folder_of_transformers_gives_its_hidden_states(tmp_path, save, prefix):
    model = save(tmp_path).eval()
    parts = load(f"hf:{tmp_path}")
    x = pixels(parts)
    assert x.shape == (1, 3, 42, 42)
    expected = model(pixel_values=x, output_hidden_states=True).hidden_states[-2][:, prefix:]
    torch.testing.assert_close(parts.tower(x), expected, rtol=0, atol=1e-6)
    assert (parts.tower.config.rows, parts.tower.config.cols) == (3, 3)
    assert not any("text" in name or "logit" in name for name, _ in parts.tower.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("save", [save_whole_clip, save_whole_siglip, save_dinov2])
def test_another_image_size_reaches_processor_and_positions(tmp_path, save):
    save(tmp_path)
    parts = load(f"hf:{tmp_path}", image_size=84)
    x = pixels(parts)
    assert x.shape == (1, 3, 84, 84)
    assert parts.tower(x).shape == (1, 36, 16)


@torch.no_grad()
def test_the_folders_own_processor_is_taken_and_the_familys_where_it_has_none(tmp_path):
    save_whole_clip(tmp_path)
    assert tuple(load(f"hf:{tmp_path}").image_processor.image_mean) == (0.1, 0.2, 0.3)
    bare = tmp_path / "bare"
    save_whole_clip(bare)
    for file in bare.glob("*processor*"):
        file.unlink()
    parts = load(f"hf:{bare}")
    assert parts.image_processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert pixels(parts).shape == (1, 3, 42, 42)


def test_a_folder_without_weights_builds_a_random_tower(tmp_path):
    save_whole_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load(f"hf:{tmp_path}", pretrained=False).tower.config.rows == 3
    with pytest.raises(AssetError, match="cannot be loaded"):
        load(f"hf:{tmp_path}")


def test_the_model_card_says_the_licence(tmp_path):
    save_whole_clip(tmp_path)
    assert load(f"hf:{tmp_path}").license == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert load(f"hf:{tmp_path}").license == "Apache-2.0"


def test_half_a_checkpoint_is_an_asset_error(tmp_path):
    model = save_vision_clip(tmp_path)
    state = {k: v.clone() for k, v in model.state_dict().items() if "layers.1" not in k}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssetError, match="lack 16 tensors of the model"):
        load(f"hf:{tmp_path}")


def test_what_is_not_a_vision_tower_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a llama model; vision towers of hf are clip, siglip, dinov2"):
        load(f"hf:{tmp_path}")
    with pytest.raises(AssetError, match="no/such-model cannot be loaded"):
        load("hf:no/such-model")


@pytest.fixture
def classifier(tmp_path):
    """A ViT of 24 classes for images of 64 pixels, as `mmkd distill` of a vision run leaves it."""
    model = timm.create_model("test_vit", patch_size=8, img_size=64, num_classes=24)
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7), "interpolation": "bilinear", "crop_pct": 1.0}
    save_for_hf(model, str(tmp_path / "model"), safe_serialization=True, data_config=data | {"input_size": (3, 64, 64)})
    return model, tmp_path / "model"


@torch.no_grad()
def test_the_tower_of_a_distilled_classifier_sees_what_the_classifier_sees(classifier):
    model, folder = classifier
    parts = load(f"timm:local-dir:{folder}", taps=[-1])
    seen = pixels(parts)
    assert seen.shape[-2:] == (64, 64)
    assert parts.image_processor.image_mean == (0.1, 0.2, 0.3)
    expected = model.eval().forward_intermediates(seen, intermediates_only=True, norm=False)[-1]
    torch.testing.assert_close(parts.tower(seen), expected.flatten(2).mT)


@torch.no_grad()
def test_it_reads_larger_images_by_more_patches(classifier):
    parts = load(f"timm:local-dir:{classifier[1]}", image_size=128)
    assert (parts.tower.config.rows, parts.tower.config.cols) == (16, 16)
    assert parts.tower(pixels(parts)).shape == (1, 256, 64)


def test_a_folder_without_a_saved_model_or_with_other_weights_is_refused(classifier, tmp_path):
    with pytest.raises(AssetError, match="holds no model that timm saved"):
        load(f"timm:local-dir:{tmp_path}")
    _, folder = classifier
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(AssetError, match="are not of its config"):
        load(f"timm:local-dir:{folder}")
    save_file({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}, folder / "model.safetensors")
    with pytest.raises(AssetError, match="are not of its config"):
        load(f"timm:local-dir:{folder}")
    (folder / "config.json").write_text('{"architecture": "test_vit", "pretrained_cfg": []}')
    with pytest.raises(AssetError, match="holds no model that timm saved"):
        load(f"timm:local-dir:{folder}")


def test_a_model_card_that_cannot_be_read_names_no_licence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert card_license(str(tmp_path), None) == "unknown"
