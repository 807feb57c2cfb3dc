"""Towers of open_clip: `open_clip:MODEL/TAG`, e.g. `open_clip:ViT-L-14-336/openai`, or `open_clip:MODEL/FILE`."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from mmkd.contracts import ContrastiveParts, Spec, VisionParts
from mmkd.errors import AssetError, ConfigError
from mmkd.models.configuration_vision import MmkdVisionConfig

from ..sources import UNREADABLE, not_found, refuse_revision, unknown_name
from .common import TowerAdapter, Wanted, build_tower, image_processor, load_part
from .timm import model_options

BROKEN = (*UNREADABLE, RuntimeError, EOFError, UnpicklingError)  # the last three from checkpoints in torch's format


class OpenClipAdapter(TowerAdapter):
    """The vision part of a CLIP-like model: patch tokens of a layer, no text tower, no projection.

    MODEL is a name of `open_clip.list_models()`; TAG one of its published weights, FILE a local checkpoint
    (safetensors, or torch's format without pickled code). Towers that open_clip takes from timm are timm's here too.
    """

    def build(self, wanted: Wanted) -> VisionParts:
        spec = wanted.spec
        refuse_revision(spec)
        name, _, weights = spec.name.partition("/")
        if name not in open_clip.list_models():
            raise unknown_name(spec, name, open_clip.list_models(), "open_clip")
        if wanted.pretrained:
            check_weights(spec, name, weights)
        published = open_clip.get_pretrained_cfg(name, weights) or {}
        model_config: Any = open_clip.get_model_config(name)
        # Some names come with OpenAI's weights but without their activation: the tag knows better.
        model_config["quick_gelu"] = bool(model_config.get("quick_gelu") or published.get("quick_gelu"))
        side = wanted.image_size or model_config["vision_cfg"].get("image_size", 224)
        config = tower_config(wanted, model_config, name, side)

        if not wanted.pretrained:
            tower = build_tower(spec, config)
        else:
            try:
                model = open_clip.create_model(
                    name, weights, force_quick_gelu=model_config["quick_gelu"], force_image_size=side
                )
            except BROKEN as error:
                raise not_found(spec, error) from error
            if config.library == "timm":
                tower = build_tower(spec, config)
                load_part(spec, tower.trunk.model, model.visual.trunk.state_dict())
            else:
                tower = build_tower(spec, config, model.visual)
        processor = image_processor(
            side,
            published.get("mean", OPENAI_DATASET_MEAN),
            published.get("std", OPENAI_DATASET_STD),
            published.get("interpolation", "bicubic"),
            crop=published.get("resize_mode", "shortest") == "shortest",
        )
        return VisionParts(tower, processor, "MIT" if weights == "openai" else "unknown")

    def load_contrastive(self, spec: Spec, *, pretrained: bool) -> ContrastiveParts:
        """See `mmkd.contracts.ContrastiveAdapter`: both towers, and the tokenizer of the text tower."""
        refuse_revision(spec)
        name, _, weights = spec.name.partition("/")
        if name not in open_clip.list_models():
            raise unknown_name(spec, name, open_clip.list_models(), "open_clip")
        if pretrained:
            check_weights(spec, name, weights)
        published = open_clip.get_pretrained_cfg(name, weights) or {}
        built: dict[str, Any] = open_clip.get_model_config(name) or {}
        quick = bool(built.get("quick_gelu") or published.get("quick_gelu"))
        try:
            model: Any = open_clip.create_model(name, weights if pretrained else None, force_quick_gelu=quick)
            tokenize = open_clip.get_tokenizer(name)
        except BROKEN as error:
            raise not_found(spec, error) from error
        side = model.visual.image_size
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        return ContrastiveParts(
            model,
            tokenize,
            built["embed_dim"],
            float(model.logit_scale.detach().exp()),
            (height, width),
            tuple(published.get("mean", OPENAI_DATASET_MEAN)),
            tuple(published.get("std", OPENAI_DATASET_STD)),
            published.get("interpolation", "bicubic"),
        )


def check_weights(spec: Spec, name: str, weights: str) -> None:
    """ConfigError unless `weights` is a tag of the model, AssetError if it is a path to no file."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights in tags or Path(weights).is_file():
        return
    if not weights:
        known = ", ".join(tags) or "none published"
        raise ConfigError(
            f"{spec}: which weights? Write open_clip:{name}/TAG (tags: {known}) or open_clip:{name}/FILE."
        )
    if "/" in weights:
        raise AssetError(f"{spec}: there is no file {weights}.")
    raise unknown_name(spec, weights, tags, f"open_clip's {name}")


def tower_config(wanted: Wanted, model_config: dict[str, Any], name: str, side: int) -> MmkdVisionConfig:
    """The record that rebuilds the vision part of an open_clip model."""
    vision = model_config["vision_cfg"] | {"image_size": side}
    if timm_name := vision.get("timm_model_name"):
        return wanted.config("timm", timm_name, model_options(timm_name, side), side)
    details = {
        "embed_dim": model_config["embed_dim"],
        "vision_cfg": vision,
        "quick_gelu": model_config["quick_gelu"],
    }
    return wanted.config("open_clip", name, details, side)
