"""What the vision adapters share: one way to build a tower and one to build an image processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from mmkd.contracts import Spec, VisionParts
from mmkd.errors import AssetError, ConfigError
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.models.vision_tower import VisionTower
from mmkd.models.vision_trunks import build_model

from ..sources import not_found


@dataclass(frozen=True)
class Wanted:
    """What `mmkd.contracts.VisionAdapter.load` was asked for."""

    spec: Spec
    image_size: int | None
    taps: list[int] | None
    grid: list[int] | None  # JSON, in which it is kept, has no tuples
    pretrained: bool

    def config(self, library: str, architecture: str, details: dict[str, Any], side: int) -> MmkdVisionConfig:
        """The record that rebuilds the tower for images of `side` pixels."""
        return MmkdVisionConfig(
            library=library,
            architecture=architecture,
            architecture_config=details,
            taps=self.taps,
            grid=self.grid,
            image_size=side,
        )


class TowerAdapter(ABC):
    """A vision adapter: `load` of `mmkd.contracts.VisionAdapter`, with its arguments gathered for `build`."""

    def load(
        self,
        spec: Spec,
        *,
        image_size: int | None = None,
        taps: list[int] | None = None,
        grid: tuple[int, int] | None = None,
        pretrained: bool = True,
    ) -> VisionParts:
        """See `mmkd.contracts.VisionAdapter`. ConfigError: names, families, taps, sizes; AssetError: weights."""
        return self.build(Wanted(spec, image_size, taps, None if grid is None else list(grid), pretrained))

    @abstractmethod
    def build(self, wanted: Wanted) -> VisionParts: ...


def build_tower(
    spec: Spec, config: MmkdVisionConfig, model: nn.Module | None = None, pretrained: bool = False, **loading: Any
) -> VisionTower:
    """The tower of `config` from `model`, from weights that timm loads (`pretrained`), or with random weights.

    Args:
        loading: what else timm is to know of the weights.

    Raises ConfigError for what the family cannot do (taps, sizes), AssetError if the weights are not to be had.
    """
    try:
        if pretrained:
            model = build_model(config, pretrained=True, **loading)
        return VisionTower(config, model).eval()
    except OSError as error:  # first: the hub's own errors are ValueErrors too
        raise not_found(spec, error) from error
    except ValueError as error:
        raise ConfigError(f"{spec}: {error}") from error


def load_part(spec: Spec, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load of `state` what `module`, cut down from the model the state belongs to, still has. All of it must be there.

    timm's feature lists flatten two levels of names: `stages_0.x` is `stages.0.x` in the state.
    """
    names = {name: name if name in state else name.replace("_", ".", 1) for name in module.state_dict()}
    missing = sorted(name for name in names.values() if name not in state)
    if missing:
        raise AssetError(f"{spec}: the weights lack {len(missing)} of {len(names)} tensors, e.g. {missing[0]}.")
    module.load_state_dict({name: state[source] for name, source in names.items()})


def image_processor(
    side: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic", crop: bool = False
) -> CLIPImageProcessor:
    """A stock processor: PIL images -> pixel_values [B, 3, side, side].

    Args:
        interpolation: a name of PIL's filters; others (timm's "random") are taken as bicubic.
        crop: True resizes the short side and cuts the middle out, False squashes the whole image, which loses nothing
            at the borders.
    """
    square = {"height": side, "width": side}
    filters = {f.name.lower(): f for f in Resampling}
    return CLIPImageProcessor(
        size={"shortest_edge": side} if crop else square,
        crop_size=square,
        do_center_crop=crop,
        resample=filters.get(interpolation, Resampling.BICUBIC),
        image_mean=list(mean),
        image_std=list(std),
    )
