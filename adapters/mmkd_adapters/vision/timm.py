"""Towers of timm: `timm:NAME`, NAME as `timm.list_models()` has it, with or without a weights tag; and
`timm:local-dir:FOLDER`, a model that timm saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import resolve_model_input_args

from mmkd import assets
from mmkd.contracts import ClassifierParts, Spec, VisionParts
from mmkd.errors import AssetError, ConfigError
from mmkd.models.vision_trunks import is_timm_vit

from ..sources import not_found, refuse_revision, spdx, unknown_name
from .common import TowerAdapter, Wanted, build_tower, image_processor, load_part
from .lite0 import read_published_lite0

LITE0 = "tf_efficientnet_lite0"
FOLDER = "local-dir:"  # timm's own word for a model in a folder
# Arguments that are never taken from a folder's config.json: those that name weights, and the number of classes.
ELSEWHERE = ("num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class TimmAdapter(TowerAdapter):
    """CNNs and hierarchical models by stages, ViTs by layers; any model as a whole classifier.

    Weights come from timm's own place on the hub, except those of EfficientNet-Lite0, which are an asset of mmkd.
    Images are squashed to a square: timm's centre crop would lose what stands at the border.
    """

    def build(self, wanted: Wanted) -> VisionParts:
        spec = wanted.spec
        refuse_revision(spec)
        if spec.name.startswith(FOLDER):
            return self._from_folder(wanted, Path(spec.name.removeprefix(FOLDER)))
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

    def _from_folder(self, wanted: Wanted, folder: Path) -> VisionParts:
        """The tower of a classifier that timm saved, as `mmkd distill` leaves it; its head stays behind."""
        spec = wanted.spec
        try:
            saved = json.loads((folder / "config.json").read_text())
            name, published = saved["architecture"], saved["pretrained_cfg"]
            classes = {"num_classes": int(saved["num_classes"])}
            options = {key: value for key, value in saved.get("model_args", {}).items() if key not in ELSEWHERE}
            side = wanted.image_size or int(published["input_size"][-1])
            mean, std, interpolation = published["mean"], published["std"], published["interpolation"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AssetError(f"{spec}: {folder} holds no model that timm saved ({error!r}).") from error
        published_config(Spec(spec.source, name))
        config = wanted.config("timm", name, options | model_options(name, side, options), side)
        # timm is strict only where heads agree; the trunk drops it. The folder does not say where weights come from.
        overlay = classes | {"file": str(folder / "model.safetensors")}
        loading = {"pretrained": True, "pretrained_cfg_overlay": overlay, **classes} if wanted.pretrained else {}
        try:
            tower = build_tower(spec, config, **loading)
        except (RuntimeError, SafetensorError) as error:
            raise AssetError(f"{spec}: the weights in {folder} are not of its config.json ({error}).") from error
        processor = image_processor(side, mean, std, interpolation)
        return VisionParts(tower, processor, "unknown")

    def load_classifier(
        self, spec: Spec, *, classes: int | None, image_size: int | None, options: dict[str, Any], pretrained: bool
    ) -> ClassifierParts:
        """See `mmkd.contracts.ClassifierAdapter`. `timm:local-dir:FOLDER` is a model that timm saved."""
        if not spec.name.startswith(FOLDER):
            published = published_config(spec)
            if pretrained and not published.has_weights:
                raise ConfigError(
                    f"{spec}: timm publishes no weights for it; set pretrained: false, or take another name."
                )
        asset = pretrained and spec.name == LITE0
        size = {} if image_size is None else {"img_size": image_size}
        wanted = {} if classes is None else {"num_classes": classes}
        try:
            arguments = resolve_model_input_args(spec.name, size, **options)
            model = timm.create_model(pretrained=pretrained and not asset, **arguments, **wanted)
        except (OSError, SafetensorError) as error:  # first: the hub's own errors are ValueErrors too
            raise not_found(spec, error) from error
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"{spec} with image_size {image_size} and options {options}: {error}") from error
        if asset:
            load_backbone(spec, model, read_published_lite0(assets.path("efficientnet-lite0")))
        own = model.pretrained_cfg
        data = resolve_data_config(pretrained_cfg=own)
        side = image_size or data["input_size"][-1]
        names = own.get("label_names") if classes in (None, own.get("num_classes")) else None
        return ClassifierParts(
            model,
            (side, side),
            tuple(data["mean"]),
            tuple(data["std"]),
            data["interpolation"],
            list(names) if names else None,
        )


def load_backbone(spec: Spec, model: Any, state: dict[str, torch.Tensor]) -> None:
    """Load `state` but for the classifier where it has another number of classes."""
    head = model.get_classifier()
    own = model.state_dict()
    outside = {name for name, tensor in own.items() if name in state and tensor.shape != state[name].shape}
    missing = sorted(name for name in own if name not in state)
    if missing or len(outside) > len(list(head.parameters())):
        raise AssetError(f"{spec}: the weights are of another model ({', '.join((missing + sorted(outside))[:3])}).")
    model.load_state_dict({name: own[name] if name in outside else state[name] for name in own})


def published_config(spec: Spec) -> Any:
    """timm's record of the weights of `spec`. ConfigError with near names if there is no such model or tag."""
    if not timm.is_model(spec.name):
        raise unknown_name(spec, spec.name, timm.list_models(), "timm")
    try:
        return timm.get_pretrained_cfg(spec.name, allow_unregistered=False)
    except RuntimeError as error:
        raise unknown_name(spec, spec.name, timm.list_pretrained(f"{spec.name.split('.')[0]}.*"), "timm") from error


def model_options(name: str, side: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of `timm.create_model` for images of `side` pixels, beside the `options` of the model."""
    if not is_timm_vit(name):
        return {"img_size": side} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    with torch.device("meta"):
        patch = timm.create_model(name, **(options or {})).patch_embed.patch_size[0]
    if side < patch:
        raise ConfigError(f"timm:{name}: image_size {side} is smaller than one patch of {patch} pixels.")
    # timm's any-size mode wants whole patches; SigLIP's 384 / 14 is not, and stays at its one size.
    return {"img_size": side, "dynamic_img_size": side % patch == 0}
