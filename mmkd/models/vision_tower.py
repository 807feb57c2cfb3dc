"""One vision tower over timm, open_clip and transformers: images in, a row-major sequence of patch features out.

Only the part of a model that the taps read is kept: text tower, heads, final norms and the layers after the deepest tap
are dropped, so that nothing unused is trained, broadcast or shipped. The trunks, one per kind of model, are in
`vision_trunks`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_vision import MmkdVisionConfig
from .vision_trunks import build_model, build_trunk


class VisionTower(nn.Module):
    """Patch features of images.

    Args:
        config: what to build. Its derived fields (hidden_size, rows, cols) are filled in.
        model: the library's own module with its weights, of which the tower keeps the part it needs; without it the
            same module is built with random weights, without network.

    Raises:
        ValueError: a model, tap or input size that the family does not have.
    """

    def __init__(self, config: MmkdVisionConfig, model: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.trunk = build_trunk(config, build_model(config) if model is None else model)
        make_buffers_persistent(self)
        self.standardize = Standardize(sum(self.trunk.channels)) if config.standardize else None
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        config.hidden_size = sum(self.trunk.channels)
        if not (config.rows and config.cols):
            config.rows, config.cols = self.grid(config.image_size, config.image_size)

    @property
    def hidden_size(self) -> int:
        """Channels of a patch feature, summed over taps."""
        return self.config.hidden_size

    @property
    def stage_names(self) -> list[str]:
        """One name per tap, from shallow to deep: `stage4` (CNN, counted from 0) or `layer11` (ViT, from 1)."""
        return list(self.trunk.names)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, cols) of the features of a height x width image. ValueError if the family cannot take that size."""
        if (height, width) not in self._grids:
            own = self.trunk.grid(height, width)
            self._grids[height, width] = tuple(self.config.grid) if self.config.grid else own
        return self._grids[height, width]

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        """The map of every tap, unpooled, from shallow to deep: [B, 3, H, W] -> list of [B, C_s, rows_s, cols_s]."""
        # Under a cast model (bf16) images still come as fp32.
        return self.trunk(pixel_values.to(next(self.parameters()).dtype))

    def join(self, maps: list[Tensor]) -> Tensor:
        """Pool the maps of `stages` to one grid and line them up: list of [B, C_s, r_s, c_s] -> [B, rows*cols, C]."""
        rows, cols = self.config.grid or maps[-1].shape[-2:]
        # Adaptive pooling takes the exact mean over each cell, whatever the ratio: 27 -> 8 as well as 32 -> 8. A map
        # that is coarser than the grid repeats its values.
        maps = [m if m.shape[-2:] == (rows, cols) else F.adaptive_avg_pool2d(m, (rows, cols)) for m in maps]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)  # [B, C, rows, cols] -> [B, rows*cols, C]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rows*cols, hidden_size], row-major."""
        features = self.join(self.stages(pixel_values))
        return features if self.standardize is None else self.standardize(features)


class Standardize(nn.Module):
    """Each channel less its mean, over its deviation: constants, measured once before training.

    The maps of a CNN, read at several stages, have means many times their spread; as they are, every image token would
    start out nearly the same, and tens of times longer than a word's embedding.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """[.., C] -> [.., C]."""
        return (features - self.mean) / self.deviation

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Take mean and deviation from raw features [.., C]; a channel that never changes is left unscaled."""
        deviation, mean = torch.std_mean(features.double().flatten(0, -2), dim=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))


def make_buffers_persistent(module: nn.Module) -> None:
    """Let every buffer be saved.

    transformers loads onto the meta device first, and a buffer that is not in the file then comes back as whatever lay
    in memory (position ids of CLIP, rotary tables of timm).
    """
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(name, buffer, persistent=True)
