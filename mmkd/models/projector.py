"""Projectors: from patch features of the vision tower to the embeddings that the decoder reads.

Each takes features [B, rows*cols, D], row-major, and gives [B, tokens, out]; its `tokens` is a fixed number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_projector(config: dict[str, Any], in_features: int, out_features: int, rows: int, cols: int) -> nn.Module:
    """The projector of `config`: `kind`, and `layers`, `factor`, `queries`, `heads` as far as the kind reads them.

    Args:
        in_features: channels of the tower.
        out_features: width of the decoder's embeddings.
        rows, cols: grid of the tower.

    Raises:
        ValueError: an unknown kind, or heads that do not divide the decoder's width.
    """
    kind, layers, factor = config.get("kind", "mlp"), config.get("layers", 2), config.get("factor", 2)
    if kind == "linear":
        return MLP(in_features, out_features, 1, tokens=rows * cols)
    if kind == "mlp":
        return MLP(in_features, out_features, layers, tokens=rows * cols)
    if kind == "pixel_shuffle":
        return PixelShuffle(in_features, out_features, layers, factor, rows, cols)
    if kind == "average_pool":
        return AveragePool(in_features, out_features, layers, factor, rows, cols)
    if kind == "resampler":
        return Resampler(
            in_features, out_features, rows * cols, queries=config.get("queries", 64), heads=config.get("heads", 8)
        )
    raise ValueError(f"projector.kind {kind!r} is not one of linear, mlp, pixel_shuffle, average_pool, resampler.")


class MLP(nn.Module):
    """Linear layers with exact GELU between them; each patch by itself.

    Two layers are LLaVA's projector: `linear_1` and `linear_2` have its names and shapes. One is a linear map.
    """

    def __init__(self, in_features: int, out_features: int, layers: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.names = [f"linear_{index + 1}" for index in range(layers)]
        for index, name in enumerate(self.names):
            self.add_module(name, nn.Linear(out_features if index else in_features, out_features))

    def forward(self, features: Tensor) -> Tensor:
        for index, name in enumerate(self.names):
            features = self.get_submodule(name)(F.gelu(features) if index else features)
        return features


class PixelShuffle(nn.Module):
    """Every factor x factor square of patches becomes one token with factor^2 times the channels; then an MLP.

    Inside a square the channels of its patches stand row-major: top-left, top-right, bottom-left, bottom-right. A grid
    that `factor` does not divide is padded with zeros below and to the right: 27x27 by 2 gives 14x14 tokens.
    """

    def __init__(self, in_features: int, out_features: int, layers: int, factor: int, rows: int, cols: int):
        super().__init__()
        self.rows, self.cols, self.factor = rows, cols, factor
        self.tokens = -(-rows // factor) * -(-cols // factor)
        self.mlp = MLP(in_features * factor**2, out_features, layers, self.tokens)

    def shuffle(self, features: Tensor) -> Tensor:
        """[B, rows*cols, D] -> [B, tokens, factor^2 * D]."""
        f = self.factor
        grid = features.unflatten(1, (self.rows, self.cols))  # [B, rows, cols, D]
        grid = F.pad(grid, (0, 0, 0, -self.cols % f, 0, -self.rows % f))
        grid = grid.unflatten(2, (-1, f)).unflatten(1, (-1, f))  # [B, R, f, C, f, D]
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)  # [B, R, C, f, f, D] -> [B, R*C, f*f*D]

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(self.shuffle(features))


class AveragePool(nn.Module):
    """The mean of every factor x factor square of patches; then an MLP. The last squares of an odd grid are smaller."""

    def __init__(self, in_features: int, out_features: int, layers: int, factor: int, rows: int, cols: int):
        super().__init__()
        self.rows, self.cols, self.factor = rows, cols, factor
        self.tokens = -(-rows // factor) * -(-cols // factor)
        self.mlp = MLP(in_features, out_features, layers, self.tokens)

    def pool(self, features: Tensor) -> Tensor:
        """[B, rows*cols, D] -> [B, tokens, D]."""
        grid = features.transpose(1, 2).unflatten(2, (self.rows, self.cols))  # [B, D, rows, cols]
        # ceil_mode takes the last, smaller squares in, and counts only the patches that are there.
        return F.avg_pool2d(grid, self.factor, ceil_mode=True).flatten(2).transpose(1, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(self.pool(features))


class Resampler(nn.Module):
    """A fixed number of learned queries, each attending to all patches: one cross-attention and an MLP, both pre-norm.

    Source: the Perceiver resampler (Alayrac et al. 2022), one layer. Attention has no order of its own, so patches get
    a learned embedding of their place.
    """

    def __init__(self, in_features: int, out_features: int, patches: int, queries: int, heads: int):
        super().__init__()
        if out_features % heads:
            raise ValueError(f"projector.heads = {heads} does not divide the decoder's width {out_features}.")
        self.tokens, self.heads = queries, heads
        self.queries = nn.Parameter(torch.randn(queries, out_features) * 0.02)
        self.places = nn.Parameter(torch.randn(patches, out_features) * 0.02)
        self.input = nn.Linear(in_features, out_features)
        self.norm_patches, self.norm_queries = nn.LayerNorm(out_features), nn.LayerNorm(out_features)
        self.query = nn.Linear(out_features, out_features)
        self.key = nn.Linear(out_features, out_features, bias=False)  # softmax would cancel a bias
        self.value, self.output = nn.Linear(out_features, out_features), nn.Linear(out_features, out_features)
        self.norm_mlp = nn.LayerNorm(out_features)
        self.mlp = nn.Sequential(
            nn.Linear(out_features, 4 * out_features), nn.GELU(), nn.Linear(4 * out_features, out_features)
        )

    def forward(self, features: Tensor) -> Tensor:
        patches = self.norm_patches(self.input(features) + self.places)  # [B, N, E]
        latents = self.queries.expand(len(features), -1, -1)  # [B, tokens, E]
        read = F.scaled_dot_product_attention(
            self._by_head(self.query(self.norm_queries(latents))),
            self._by_head(self.key(patches)),
            self._by_head(self.value(patches)),
        )  # [B, heads, tokens, E/heads]
        latents = latents + self.output(read.transpose(1, 2).flatten(2))
        return latents + self.mlp(self.norm_mlp(latents))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, N, E] -> [B, heads, N, E/heads]
