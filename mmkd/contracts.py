"""What an adapter is: all of mmkd that a third-party plug-in has to import.

A *source* names a model: ``source:name@revision``, e.g. ``timm:vit_small_patch14_dinov2``,
``open_clip:ViT-L-14-336/openai``, ``hf:HuggingFaceTB/SmolLM2-135M-Instruct``, ``gguf:smollm2-135m``.
Adapters register under the entry points ``mmkd.vision`` and ``mmkd.language``; the entry point's name is the source.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from mmkd.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mmkd.models.vision_tower import VisionTower

GROUPS = {"vision": "mmkd.vision", "language": "mmkd.language"}


@dataclass(frozen=True)
class Spec:
    """A parsed model source. ``str(spec)`` gives the text back."""

    source: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Split ``source:name@revision``; the path of what is there is all name, an @ in it too.

        Raises ConfigError where source or name is missing.
        """
        source, colon, rest = text.partition(":")
        path = rest.rpartition(":")[2]  # behind timm's local-dir:
        name, _, revision = (rest, "", "") if os.path.exists(path) else rest.partition("@")
        if not colon or not source or not name:
            raise ConfigError(
                f"model source {text!r} is not of the form source:name@revision, e.g. timm:resnet18 or hf:org/model."
            )
        return cls(source, name, revision or None)

    def __str__(self) -> str:
        return f"{self.source}:{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass
class VisionParts:
    """What a vision adapter gives back."""

    tower: VisionTower  # weights loaded; its .config rebuilds the same module without the adapter
    image_processor: Any  # a stock transformers image processor: PIL images -> pixel_values [B, 3, H, W]
    license: str  # SPDX id or "unknown"


@dataclass
class ClassifierParts:
    """What a vision adapter gives back for a whole classifier."""

    model: nn.Module  # a timm model, logits included
    size: tuple[int, int]  # (height, width) of its images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    classes: list[str] | None  # names in the order of the logits, where the weights bring them


@dataclass
class ContrastiveParts:
    """What a vision adapter gives back for a model of images and texts in one space."""

    model: Any  # an nn.Module with encode_image(pixels [B, 3, H, W]) and encode_text(ids), -> [B, width]
    tokenize: Callable[[list[str]], Tensor]  # texts -> ids [B, T]
    width: int
    scale: float  # of cosines, as it was trained: exp of CLIP's logit_scale
    size: tuple[int, int]  # (height, width) of its images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass
class LanguageParts:
    """What a language adapter gives back."""

    model: PreTrainedModel  # a decoder with a language-model head that honours a transformers Cache
    tokenizer: PreTrainedTokenizerBase
    license: str
    notes: dict[str, Any] = field(default_factory=dict)


class VisionAdapter(Protocol):
    def load(
        self,
        spec: Spec,
        *,
        image_size: int | None,
        taps: list[int] | None,
        grid: tuple[int, int] | None,
        pretrained: bool,
    ) -> VisionParts:
        """Build the tower of `spec`.

        Args:
            image_size: side in pixels; None takes the model's own.
            taps: which stages (CNN, hierarchical) or layers (ViT, counted as hidden states, negative from the end)
                to read; several are concatenated on the channel axis. None takes the family's default
                (ViT: -2, the penultimate layer; CNN: the last stage).
            grid: (rows, cols) to which every tapped map is average-pooled; None keeps the tower's own grid.
            pretrained: False builds the same module with random weights (tests, rebuilding before a load).
        """
        ...


class ClassifierAdapter(Protocol):
    def load_classifier(
        self,
        spec: Spec,
        *,
        classes: int | None,
        image_size: int | None,
        options: dict[str, Any],
        pretrained: bool,
    ) -> ClassifierParts:
        """Build a whole classifier, its head included.

        Args:
            classes: logits wanted, which makes a new head where the weights have another number; None keeps theirs.
            image_size: side in pixels; None takes the model's own.
            options: further arguments of timm.create_model.
            pretrained: False leaves all weights random.
        """
        ...


class ContrastiveAdapter(Protocol):
    def load_contrastive(self, spec: Spec, *, pretrained: bool) -> ContrastiveParts:
        """Build both towers of a CLIP-like model. `pretrained` False leaves all weights random."""
        ...


class LanguageAdapter(Protocol):
    def load(self, spec: Spec, *, pretrained: bool) -> LanguageParts:
        """Build the decoder of `spec`. `pretrained` False leaves all weights random."""
        ...

    def tokenizer(self, spec: Spec) -> PreTrainedTokenizerBase:
        """Its tokenizer alone: configs are checked by it before any weight is loaded."""
        ...


def adapters(kind: str) -> dict[str, Any]:
    """Every adapter installed for `kind` ("vision" or "language"), by source name."""
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def adapter(kind: str, spec: Spec) -> Any:
    """The adapter that serves `spec`; raises ConfigError naming the sources there are."""
    found = adapters(kind)
    if spec.source not in found:
        near = difflib.get_close_matches(spec.source, found, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{spec}: no {kind} adapter named {spec.source!r}.{hint} Installed: {', '.join(sorted(found)) or 'none'}."
        )
    return found[spec.source].load()
