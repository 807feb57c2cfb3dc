"""Classifiers as folders: loaded from timm or from a run, saved as timm reads them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from safetensors import SafetensorError
from timm.models import save_for_hf

from mmkd.checkpoints import is_complete, mark_complete
from mmkd.config.vision_schema import ClassifierSection
from mmkd.contracts import ClassifierParts, ContrastiveParts, Spec, adapter
from mmkd.errors import ConfigError, TrainingError
from mmkd.vision_distill.task import classes as class_count
from mmkd.vision_distill.views import Preprocessing


def load_classifier(section: ClassifierSection, classes: list[str] | None, at: str) -> ClassifierParts:
    """The classifier of a config section.

    Args:
        classes: of the data, for a student, which gets a new head where it needs one; None keeps the model's own.
        at: `student` or `teacher`, for messages.

    Raises: ConfigError for a source that has no classifiers, or a folder that a run left half written; AssetError for
        weights that are not to be had.
    """
    folder = Path(section.model)
    if folder.is_dir():
        if not (folder / "config.json").is_file() or (
            (folder.parent / "config.yaml").exists() and not is_complete(folder)
        ):
            raise ConfigError(f"{at}.model is {section.model}, which holds no whole classifier; train one there first.")
        spec = Spec("timm", f"local-dir:{folder}")
    else:
        spec = Spec.parse(section.model)
    if spec.source != "timm":
        raise ConfigError(
            f"{at}.model is {section.model!r}; allowed: timm:NAME, or the folder of a trained classifier (a source of "
            "another name gives towers, which have no classes)."
        )
    count = None if classes is None else len(classes)
    return adapter("vision", spec)().load_classifier(
        spec,
        classes=count,
        image_size=section.image_size,
        options=section.options,
        pretrained=section.pretrained,
    )


def load_patch_teacher(section: ClassifierSection) -> ClassifierParts:
    """The teacher of the space patches: a classifier of timm, or a tower of any other adapter at its own tap (of a ViT
    the last layer but one), in the place of the classifier. Raises: as `load_classifier` and the adapter."""
    if Path(section.model).is_dir() or (spec := Spec.parse(section.model)).source == "timm":
        return load_classifier(section, None, "teacher")
    if section.options:
        raise ConfigError(f"teacher.options are of timm alone; teacher.model is {section.model!r}. Leave them out.")
    seen = adapter("vision", spec)().load(
        spec, image_size=section.image_size, taps=None, grid=None, pretrained=section.pretrained
    )
    processor, side = seen.image_processor, seen.tower.config.image_size
    mean, std, filter = processor.image_mean, processor.image_std, Resampling(processor.resample).name.lower()
    return ClassifierParts(seen.tower, (side, side), tuple(mean), tuple(std), filter, classes=None)


def check_classes(parts: ClassifierParts, classes: list[str], at: str) -> None:
    """Raises ConfigError unless the model's classes are those of the data, in their order."""
    if parts.classes is not None and parts.classes != classes:
        raise ConfigError(
            f"{at} tells {len(parts.classes)} classes apart ({', '.join(parts.classes[:3])} ..), the data has "
            f"{len(classes)} ({', '.join(classes[:3])} ..), and logits are compared class by class: take a teacher "
            "that was trained on these classes."
        )
    if class_count(parts.model) != len(classes):
        raise ConfigError(
            f"{at} has {class_count(parts.model)} logits, the data {len(classes)} classes: take a {at} that was "
            "trained on these classes."
        )


def preprocessing(parts: ClassifierParts | ContrastiveParts) -> Preprocessing:
    """How the model wants its images."""
    return Preprocessing(parts.size, parts.mean, parts.std, parts.interpolation)


def save_classifier(parts: ClassifierParts, weights: dict[str, torch.Tensor], classes: list[str], target: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:TARGET", pretrained=True)` loads, with class names and
    preprocessing. It appears whole or not at all. Raises TrainingError where it cannot be written."""
    parts.model.load_state_dict(weights)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    data: dict[str, Any] = {"mean": parts.mean, "std": parts.std, "interpolation": parts.interpolation, "crop_pct": 1.0}
    try:
        save_for_hf(
            parts.model,
            str(partial),
            model_config={"label_names": classes},
            safe_serialization=True,
            data_config=data | {"input_size": (3, *parts.size)},
        )
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{partial} could not be written ({error}). Make room.") from error
    mark_complete(partial)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
