"""Images compressed once, to be asked about many times: making a VocoCache, and reading from one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from .prefix import Prefix, gather_prefix
from .rotation import moved_keys
from .two_pass import TwoPassModel
from .voco_cache import VocoCache


def weights_fingerprint(model: nn.Module) -> str:
    """Of the names, shapes and sampled values of a model's weights. It tells mistakes, not attacks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


class CompressingModel(TwoPassModel):
    """Adds `compress` and what reads its result."""

    @torch.no_grad()
    def compress(
        self,
        pixel_values: Tensor | None = None,
        tokens: int | None = None,
        image_tiles: Tensor | None = None,
        tower_features: Tensor | None = None,
        **_: Any,
    ) -> VocoCache:
        """Read images once and keep only k tokens of each.

        Args:
            pixel_values: [tiles, 3, H, W]; image_tiles: [M], one tile an image by default.
            tower_features: [tiles, N, D_v], what `vision_tower` made of those pixels, in their place.
            tokens: k, at most the model's K; K by default.

        Raises: ValueError where the model has no compression tokens or not so many.
        """
        tokens = self.config.voco_tokens if tokens is None else tokens
        features = self.image_features(pixel_values, tower_features)  # [tiles, n, D]
        tiles = image_tiles.tolist() if image_tiles is not None else [1] * len(features)
        rows = list(range(len(tiles)))
        sinks, kept = self.encode(self.blocks(features, tiles, rows, [0] * len(rows), len(rows), tokens))
        layers = [
            (torch.cat([sk, k], dim=2), torch.cat([sv, v], dim=2)) for (sk, sv), (k, v) in zip(sinks, kept, strict=True)
        ]
        counts = torch.tensor([count * features.shape[1] for count in tiles], device=features.device)
        return VocoCache(layers, counts, self.voco.mass_bias(tokens), {**self.voco_identity(), "tokens": str(tokens)})

    def voco_identity(self) -> dict[str, str]:
        """What a cache must agree with: a fingerprint of the weights (shapes and sampled values), of the processor, and
        the settings that shape a cache. It tells mistakes, not attacks."""
        text = self.config.text_config
        rope = getattr(text, "rope_parameters", None)
        return {
            "model": weights_fingerprint(self),
            "processor": str(getattr(self.config, "processor_hash", "")),
            "most_tokens": str(self.config.voco_tokens),
            "dtype": str(self.dtype).removeprefix("torch."),
            "rope": json.dumps(rope, sort_keys=True, default=str),
            "preset": self.config.voco["preset"] if self.config.voco else "none",
            "pooled": str(bool((self.config.voco or {}).get("pooled"))),
        }

    def cache_prefix(self, cache: VocoCache, rows: list[int], batch: int) -> Prefix:
        """Lay cached images out by text row; an image that stands behind others has its keys rotated to its place."""
        offsets, starts = [], torch.ones(batch, 1, dtype=torch.long)
        for row, count in zip(rows, cache.image_tokens.tolist(), strict=True):
            offset = int(starts[row]) if offsets and row in rows[: len(offsets)] else 0
            offsets.append(offset)
            starts[row] = offset + 1 + count + self.config.voco_tokens
        layers = cache.layers
        if any(offsets):
            layers = [
                (k, v) for k, (_, v) in zip(moved_keys(self, [k for k, _ in layers], offsets), layers, strict=True)
            ]
        sink = [(k[0, :, :1], v[0, :, :1]) for k, v in cache.layers]
        kept = [(k[:, :, 1:], v[:, :, 1:]) for k, v in layers]
        kept_mask = torch.ones(len(rows), cache.tokens, dtype=torch.bool)
        hide = self.config.voco["preset"] == "faithful"
        device = cache.image_tokens.device
        return gather_prefix(
            sink,
            kept,
            kept_mask,
            torch.tensor(rows),
            torch.zeros(len(rows), dtype=torch.long),
            starts.to(device),
            hide,
            cache.bias,
        )


__all__ = ["CompressingModel", "weights_fingerprint"]
