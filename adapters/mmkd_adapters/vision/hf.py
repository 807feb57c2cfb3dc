"""Towers of transformers: `hf:FOLDER_OR_HUB_ID` of CLIP, SigLIP or DINOv2, whole models or their vision part."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils import logging

from mmkd.contracts import Spec, VisionParts
from mmkd.errors import ConfigError

from ..sources import UNREADABLE, card_license, not_found, require_all
from .common import TowerAdapter, Wanted, build_tower, image_processor

# model_type of the folder -> processor where the folder has none: mean, std, whether the middle is cut out
FAMILIES = {
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, True),
    "siglip": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, False),
    "dinov2": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, True),
}
# Of this process or of the file, not of the architecture.
NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


class HfVisionAdapter(TowerAdapter):
    """CLIP, SigLIP and DINOv2. Without `image_size` the side is the one that the folder's own processor makes."""

    def build(self, wanted: Wanted) -> VisionParts:
        spec = wanted.spec
        vision = vision_config(spec)
        processor, side = processor_for(spec, vision, wanted.image_size)
        details = {k: v for k, v in vision.to_diff_dict().items() if k not in NOT_ARCHITECTURE}
        config = wanted.config("transformers", vision.model_type, details, side)
        model = load_weights(spec, vision) if wanted.pretrained else None
        return VisionParts(build_tower(spec, config, model), processor, card_license(spec.name, spec.revision))


def vision_config(spec: Spec) -> Any:
    """The config of the vision part. ConfigError for a family that has no tower here."""
    try:
        config = AutoConfig.from_pretrained(spec.name, revision=spec.revision)
    except UNREADABLE as error:
        raise not_found(spec, error) from error
    if config.model_type.removesuffix("_vision_model") not in FAMILIES:
        raise ConfigError(f"{spec} is a {config.model_type} model; vision towers of hf are {', '.join(FAMILIES)}.")
    return getattr(config, "vision_config", config)  # a whole CLIP or SigLIP holds its vision part's config


def load_weights(spec: Spec, vision: Any) -> Any:
    """The vision model with its weights, fp32. AssetError if a tensor is missing from the file."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table of every tensor of the text tower, which is left out on purpose
    try:
        model, info = AutoModel.from_pretrained(
            spec.name, revision=spec.revision, config=vision, dtype="float32", output_loading_info=True
        )
    except UNREADABLE as error:
        raise not_found(spec, error) from error
    finally:
        logging.set_verbosity(verbosity)
    require_all(spec, info)
    return model


def processor_for(spec: Spec, vision: Any, side: int | None) -> tuple[Any, int]:
    """The folder's own image processor (the family's where it has none), and the side in pixels of what it makes."""
    try:
        processor = AutoImageProcessor.from_pretrained(spec.name, revision=spec.revision)
    except (OSError, ValueError):  # a folder with weights only
        mean, std, crop = FAMILIES[vision.model_type.removesuffix("_vision_model")]
        made = side or int(vision.image_size)
        return image_processor(made, mean, std, crop=crop), made
    crops = bool(getattr(processor, "do_center_crop", False))
    own = processor.crop_size if crops else processor.size
    if side is None:
        return processor, own.get("height") or vision.image_size
    square = {"height": side, "width": side}
    processor.size = {"shortest_edge": side} if crops and "shortest_edge" in processor.size else square
    if crops:
        processor.crop_size = square
    return processor, side
