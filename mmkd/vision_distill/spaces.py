"""Logit spaces beside class labels: what a teacher without classes can say of an image, and of each of its patches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmkd.config.load import check_options
from mmkd.config.problems import near
from mmkd.config.vision_schema import ClassifierSection, SpaceSection
from mmkd.contracts import ContrastiveParts, Spec, adapter
from mmkd.errors import ConfigError
from mmkd.models.vision_tower import VisionTower
from mmkd.objectives.checks import count, number
from mmkd.vision_distill.exits import find_exits, read_staged

TEMPLATE = "a photo of a {}."


@dataclass
class SpaceTargets:
    """What the teacher says of a batch.

    Attributes:
        logits: [n, M], n images, or the patches of all images.
        rows: [M, d], of length 1: what each logit stands for. A student's vector v has the logits
            scale * normalize(v) @ rows.T.
        targets: [n] the row that is true of each, or None where nobody knows.
        grid: (rows, columns) of an image's patches; None where an image is one vector.
    """

    logits: Tensor
    rows: Tensor
    scale: float
    targets: Tensor | None
    grid: tuple[int, int] | None = None


class Space:
    """A logit space with its frozen teacher.

    Attributes:
        model: the teacher; width: d, of its vectors; targeted: whether the true row is known.
    """

    model: Any
    width: int
    targeted = True
    dense = False

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """Refuse values of its options that it does not take; asked before any model is loaded. Raises ConfigError."""

    def teach(self, pixels: Tensor, labels: Tensor, captions: Sequence[str | None]) -> SpaceTargets:
        """The teacher's pixels [B, 3, H, W] and what is known of the images -> its logits. Without gradient."""
        raise NotImplementedError


class Contrastive(Space):
    """In-batch contrast with the frozen teacher's text tower.

    Rows are the different captions of the batch: an image's own, or `template` with its class name. The target is the
    image's own caption, so the enhancement of OFA is well defined. Captions that several images share are one row.
    """

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        _filled(options.get("template", TEMPLATE), ())

    def __init__(self, parts: ContrastiveParts, classes: Sequence[str], template: str = TEMPLATE):
        self.parts, self.model, self.width = parts, parts.model, parts.width
        self.captions = _filled(template, classes)

    @torch.no_grad()
    def teach(self, pixels: Tensor, labels: Tensor, captions: Sequence[str | None]) -> SpaceTargets:
        own = [
            caption if caption is not None else self.captions[label]
            for caption, label in zip(captions, labels.tolist(), strict=True)
        ]
        texts = list(dict.fromkeys(own))
        rows = _texts(self.parts, texts, pixels.device)  # [M, d]
        places = {text: place for place, text in enumerate(texts)}
        targets = torch.tensor([places[text] for text in own], device=pixels.device)
        return SpaceTargets(_image_logits(self.parts, pixels, rows), rows, self.parts.scale, targets)


class Prompts(Space):
    """A zero-shot bank of fixed prompts: the classes of the data by `templates`, or the lines of the file `bank`.

    A class's row is the mean of its templates' text features, of length 1 (Radford et al. 2021, section 3.1.4). With a
    `bank` of other prompts nobody knows the true one.
    """

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        if options.get("bank") is not None:
            _lines(options["bank"])
        templates = options.get("templates", [TEMPLATE])
        for template in templates:
            _filled(template, ())
        if not templates:
            raise ConfigError("space.templates is empty; name one at least, e.g. 'a photo of a {}.'.")

    def __init__(
        self,
        parts: ContrastiveParts,
        classes: Sequence[str],
        templates: list[str] = [TEMPLATE],  # noqa: B006 (never changed)
        bank: str | None = None,
    ):
        self.parts, self.model, self.width = parts, parts.model, parts.width
        self.targeted = bank is None
        self.check({"templates": templates, "bank": bank})
        self.prompts = [_lines(bank)] if bank is not None else [_filled(template, classes) for template in templates]
        self._rows: Tensor | None = None

    @torch.no_grad()
    def teach(self, pixels: Tensor, labels: Tensor, captions: Sequence[str | None]) -> SpaceTargets:
        if self._rows is None:
            several = torch.stack([_texts(self.parts, texts, pixels.device) for texts in self.prompts])
            self._rows = normalize(several.mean(0), dim=-1)  # [M, d]
        logits = _image_logits(self.parts, pixels, self._rows)
        return SpaceTargets(logits, self._rows, self.parts.scale, labels if self.targeted else None)


class Patches(Space):
    """Dense logits: each patch against a codebook of the teacher's patch features.

    Rows are k-means centres of the teacher's last feature map, cut into patches of length 1. Its logits at a place are
    scale * cosine(feature, centre): a soft assignment. There is no true code: taking the teacher's likeliest one for it
    would confirm the teacher by itself.

    Args:
        model: a classifier of timm, read where its last stage ends, or a tower, read at its tap.
        codes: M; images: how many the centres are made from; scale: sharpness of the assignment.
    """

    targeted = False
    dense = True

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        for name in {"codes", "images"} & options.keys():
            count("space", name, options[name])
        if "scale" in options:
            number("space", "scale", options["scale"], above=0)

    def __init__(self, model: Any, size: tuple[int, int], codes: int = 1024, images: int = 1000, scale: float = 20.0):
        self.check({"codes": codes, "images": images, "scale": scale})
        self.model, self.codes, self.images, self.scale = model, codes, images, float(scale)
        self.exits = [] if isinstance(model, VisionTower) else find_exits(model, size, "teacher")[-1:]
        self.width = self.exits[0].channels if self.exits else model.hidden_size
        self.rows: Tensor | None = None  # [M, d], from `codebook.fitted`

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """[B, d, rows, columns], not yet of length 1."""
        if self.exits:
            [stage] = read_staged(self.model, self.exits, pixels).stages
            return stage.map.float()
        [found] = self.model.stages(pixels)
        return found.float()

    @torch.no_grad()
    def teach(self, pixels: Tensor, labels: Tensor, captions: Sequence[str | None]) -> SpaceTargets:
        if self.rows is None:
            raise ValueError("the codebook is not there yet; see codebook.fitted.")
        self.rows = self.rows.to(pixels.device)
        found = self.features(pixels)
        grid = (found.shape[2], found.shape[3])
        patches = found.movedim(1, 3).flatten(0, 2)  # [B * rows * columns, d]
        return SpaceTargets(cosine_logits(patches, self.rows, self.scale), self.rows, self.scale, None, grid)


SPACES: dict[str, Any] = {"contrastive": Contrastive, "prompts": Prompts, "patches": Patches}


def cosine_logits(vectors: Tensor, rows: Tensor, scale: float) -> Tensor:
    """scale * cosine of vectors [n, d] and rows [M, d] of length 1: [n, M], fp32 also under autocast, as a scale of 100
    leaves bf16 no digits."""
    with torch.autocast(vectors.device.type, enabled=False):
        wide = torch.promote_types(vectors.dtype, torch.float32)
        return scale * normalize(vectors.to(wide), dim=-1) @ rows.to(wide).T


def check_space(section: SpaceSection, config: Any = None) -> dict[str, Any]:
    """The options of a section. Raises ConfigError for an unknown kind or option, or a value that it does not take."""
    if section.kind == "labels":
        return check_options("space labels", section.options(), inspect.Signature(), at="space", config=config)
    if section.kind not in SPACES:
        known = ["labels", *sorted(SPACES)]
        raise ConfigError(
            f"config: space.kind is {section.kind!r}; allowed: {', '.join(known)}.{near(section.kind, known)}"
        )
    given = ("self", "parts", "classes", "model", "size")
    name = f"space {section.kind}"
    options = check_options(name, section.options(), SPACES[section.kind], at="space", config=config, given=given)
    SPACES[section.kind].check(options)
    return options


def contrastive_spec(section: ClassifierSection, kind: str) -> Spec:
    """Which model the teacher of the spaces contrastive and prompts is. Raises ConfigError for one without a text
    tower."""
    spec = Spec.parse(section.model) if not Path(section.model).is_dir() else Spec("timm", section.model)
    if spec.source != "open_clip":
        raise ConfigError(
            f"teacher.model is {section.model!r}, which has no text tower; space: {kind} takes open_clip:MODEL/TAG."
        )
    if section.image_size is not None or section.options:
        raise ConfigError("teacher.image_size and teacher.options have no place beside an open_clip teacher.")
    return spec


def load_contrastive(section: ClassifierSection, kind: str) -> ContrastiveParts:
    """The teacher of the spaces contrastive and prompts. Raises: as `contrastive_spec`."""
    spec = contrastive_spec(section, kind)
    return adapter("vision", spec)().load_contrastive(spec, pretrained=section.pretrained)


def _texts(parts: ContrastiveParts, texts: list[str], device: torch.device) -> Tensor:
    """[n, d], of length 1, fp32."""
    pieces = [parts.model.encode_text(parts.tokenize(texts[i : i + 256]).to(device)) for i in range(0, len(texts), 256)]
    return normalize(torch.cat(pieces).float(), dim=-1)


def _image_logits(parts: ContrastiveParts, pixels: Tensor, rows: Tensor) -> Tensor:
    return cosine_logits(parts.model.encode_image(pixels), rows, parts.scale)  # [B, M]


def _filled(template: str, classes: Sequence[str]) -> list[str]:
    if "{}" not in template:
        raise ConfigError(f"space: the template {template!r} has no place for the class; write {{}} there.")
    return [template.replace("{}", name) for name in classes]


def _lines(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"space.bank {path} cannot be read ({error}); it is a text file, a prompt a line.") from error
    found = list(dict.fromkeys(line for line in lines if line))
    if len(found) < 2:
        raise ConfigError(f"space.bank {path} has {len(found)} different prompts; two are the least.")
    return found
