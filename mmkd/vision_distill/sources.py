"""Labelled images by index: folders, data sets of the `datasets` library, EasyVQA's shapes, scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmkd import assets
from mmkd.config.load import check_options
from mmkd.config.problems import near
from mmkd.config.vision_schema import ImagesSection
from mmkd.data.hub import load_rows, undecoded
from mmkd.data.record_files import import_datasets
from mmkd.data.rejected import BadRow
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.data.scenes import looks
from mmkd.errors import ConfigError, DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}


@dataclass(frozen=True)
class LabelledImage:
    """One image: a path, encoded bytes or an opened image, the index of its class, and its own caption, if any."""

    id: str
    image: str | bytes | Image.Image
    label: int
    caption: str | None = None


class LabelledImages(Sequence[LabelledImage]):
    """Images by index. `classes` names them in the order of the labels."""

    classes: list[str]


class Listed(LabelledImages):
    """Images that are all known from the start."""

    def __init__(self, classes: Sequence[str], images: Sequence[LabelledImage]):
        self.classes, self.images = list(classes), images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        return self.images[index]


class Fold(LabelledImages):
    """Images i, i + n, i + 2n .. of others."""

    def __init__(self, images: LabelledImages, i: int, n: int):
        self.classes, self.images, self.rows = images.classes, images, range(i, len(images), n)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        return self.images[self.rows[index]]


def folder(path: str, split: str | None = None) -> LabelledImages:
    """Images in one folder a class: PATH/[SPLIT/]CLASS/**/IMAGE. Classes are sorted by name."""
    root = Path(path, split) if split else Path(path)
    if not root.is_dir():
        raise DataError(f"folder: {root} is no folder; give path, and split where there are several.")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    images = [
        LabelledImage(str(file.relative_to(root)), str(file), label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and not _hidden(file.relative_to(root))
    ]
    return Listed(classes, images)


def _hidden(path: Path) -> bool:
    """What other programs leave beside images: `._a.png`, `.ipynb_checkpoints/a-checkpoint.png`."""
    return any(part.startswith(".") for part in path.parts)


class HubImages(LabelledImages):
    """Rows of a data set; images stay encoded until one is used."""

    def __init__(self, rows: Any, classes: list[str], image: str, label: str, caption: str | None, name: str):
        self.rows, self.classes, self.image, self.label, self.name = rows, classes, image, label, name
        self.caption = caption

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        row = self.rows[index]
        image, label = row[self.image], row[self.label]
        source = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        if not source or not isinstance(label, int) or not 0 <= label < len(self.classes):
            raise BadRow(f"{self.name}, row {index}: no image, or label {label!r} is no class.", "no image or label")
        caption = row[self.caption] if self.caption is not None else None
        if self.caption is not None and (not isinstance(caption, str) or not caption.strip()):
            raise BadRow(f"{self.name}, row {index}: {self.caption} is {caption!r}, no caption.", "no caption")
        return LabelledImage(f"{self.name}/{index}", source, label, caption)


def hub(
    path: str,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    image: str = "image",
    label: str = "label",
    caption: str | None = None,
) -> LabelledImages:
    """A data set of the `datasets` library.

    Args:
        path: hub name or local folder; name: of its configuration; revision: of the hub repository.
        image, label: columns; the label's is of the type ClassLabel, which names the classes.
        caption: column of each image's own text, for space: contrastive.
    """
    datasets = import_datasets("datasets")
    rows = undecoded(load_rows(datasets, path, name, split, revision, False), image, datasets)
    lacking = [column for column in (image, label, caption) if column and column not in rows.column_names]
    if lacking:
        raise ConfigError(
            f"datasets: {path} has no column {', '.join(lacking)}; it has {', '.join(rows.column_names)}. Name the "
            "right ones with image, label and caption."
        )
    if not isinstance(rows.features[label], datasets.ClassLabel):
        raise ConfigError(
            f"datasets: column {label} of {path} is no ClassLabel and names no classes; choose another with label."
        )
    return HubImages(rows, list(rows.features[label].names), image, label, caption, Path(path).name)


def easyvqa(split: str = "train") -> LabelledImages:
    """EasyVQA's images by shape and colour, 24 classes; those (nine in ten) whose questions settle both."""
    if split not in ("train", "test"):
        raise ConfigError(f"easyvqa has the splits train and test, not {split!r}.")
    root = assets.path("easyvqa")
    classes = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    images = [
        LabelledImage(
            f"{split}/{number}", str(root / split / "images" / f"{number}.png"), classes.index(" ".join(look))
        )
        for number, look in sorted(looks(root, split).items())
    ]
    return Listed(classes, images)


def digits(split: str = "train") -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth is a test image."""
    if split not in ("train", "test"):
        raise ConfigError(f"digits has the splits train and test, not {split!r}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("data source digits needs scikit-learn: pip install 'mmkd[data]'.") from error
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8] of 0..16
    images = [
        LabelledImage(f"digits/{index}", Image.fromarray(pixels[index]).convert("RGB"), int(found.target[index]))
        for index in range(len(pixels))
        if (index % 5 == 4) == (split == "test")
    ]
    return Listed([str(digit) for digit in range(10)], images)


SOURCES: dict[str, Callable[..., LabelledImages]] = {
    "folder": folder,
    "datasets": hub,
    "easyvqa": easyvqa,
    "digits": digits,
}


def open_images(section: ImagesSection, *, at: str = "", config: Any = None) -> LabelledImages:
    """The images of a config section.

    Args:
        at: key path of the section, e.g. `data.train`; config: the loaded config. Both only for messages.

    Raises: ConfigError for an unknown source or option, DataError where there is nothing to read.
    """
    function, options = check_images(section, at=at, config=config)
    images = function(**options)
    if section.fold is not None:
        images = Fold(images, *section.fold)
    if not len(images):
        part = f" in fold {list(section.fold)}" if section.fold else ""
        raise DataError(f"{at}: source {section.source} ({section.options()}) has no images{part}.")
    return images


def check_images(
    section: ImagesSection, *, at: str = "", config: Any = None
) -> tuple[Callable[..., LabelledImages], dict[str, Any]]:
    """What opens a source, and its options; nothing is read. Raises ConfigError for an unknown source or option."""
    if section.source not in SOURCES:
        raise ConfigError(
            f"config: {at}.source is {section.source!r}; allowed: {', '.join(sorted(SOURCES))}."
            f"{near(section.source, SOURCES)}"
        )
    function = SOURCES[section.source]
    return function, check_options(section.source, section.options(), function, at=at, config=config)
