"""Towers of timm: `timm:NAME`, NAME as `timm.list_models()` has it, with or without a weights tag."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data import resolve_data_config

from mmkd import assets
from mmkd.contracts import Spec, VisionParts
from mmkd.errors import ConfigError
from mmkd.models.vision_trunks import is_timm_vit

from ..sources import refuse_revision, spdx, unknown_name
from .common import TowerAdapter, Wanted, build_tower, image_processor, load_part
from .lite0 import read_published_lite0

LITE0 = "tf_efficientnet_lite0"


class TimmAdapter(TowerAdapter):
    """CNNs and hierarchical models by stages, ViTs by layers.

    Weights come from timm's own place on the hub, except those of EfficientNet-Lite0, which are an asset of mmkd.
    Images are squashed to a square: timm's centre crop would lose what stands at the border.
    """

    def build(self, wanted: Wanted) -> VisionParts:
        spec = wanted.spec
        refuse_revision(spec)
        published = published_config(spec)
        side = wanted.image_size or published.input_size[-1]
        config = wanted.config("timm", spec.name, model_options(spec.name, side), side)
        if wanted.pretrained and not published.has_weights:
            raise ConfigError(f"{spec}: timm publishes no weights for it; set pretrained: false, or take another name.")
        if wanted.pretrained and spec.name == LITE0:
            tower = build_tower(spec, config)
            load_part(spec, tower.trunk.model, read_published_lite0(assets.path("efficientnet-lite0")))
        else:
            tower = build_tower(spec, config, pretrained=wanted.pretrained)
        data = resolve_data_config(pretrained_cfg=published.to_dict())
        processor = image_processor(side, data["mean"], data["std"], data["interpolation"])
        return VisionParts(tower, processor, spdx(published.license))


def published_config(spec: Spec) -> Any:
    """timm's record of the weights of `spec`. ConfigError with near names if there is no such model or tag."""
    if not timm.is_model(spec.name):
        raise unknown_name(spec, spec.name, timm.list_models(), "timm")
    try:
        return timm.get_pretrained_cfg(spec.name, allow_unregistered=False)
    except RuntimeError as error:
        raise unknown_name(spec, spec.name, timm.list_pretrained(f"{spec.name.split('.')[0]}.*"), "timm") from error


def model_options(name: str, side: int) -> dict[str, Any]:
    """Arguments of `timm.create_model` for images of `side` pixels."""
    if not is_timm_vit(name):
        return {"img_size": side} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    with torch.device("meta"):
        patch = timm.create_model(name).patch_embed.patch_size[0]
    if side < patch:
        raise ConfigError(f"timm:{name}: image_size {side} is smaller than one patch of {patch} pixels.")
    # timm's any-size mode wants whole patches; SigLIP's 384 / 14 is not, and stays at its one size.
    return {"img_size": side, "dynamic_img_size": side % patch == 0}
