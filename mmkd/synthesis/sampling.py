"""Sampling in a batch whose rows are each drawn as if alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mmkd.synthesis.requests import Sampling


class RowSampler(LogitsProcessor):
    """Makes a greedy `generate` sample: each row by its own temperature, top_p and seed, whatever rows stand beside it.

    The likeliest token of logits / temperature + Gumbel noise is a sample of their softmax (Gumbel 1954), so noise from
    a generator of the row's own is all it takes. A row of temperature 0 is left as it is.
    """

    def __init__(self, rows: Sequence[Sampling]):
        self.rows = rows
        self.generators = [torch.Generator().manual_seed(row.seed) for row in rows]  # of the CPU: alike everywhere

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, L], [B, V] -> [B, V]
        drawn = [
            self._drawn(one, row, generator) if row.temperature > 0 else one
            for one, row, generator in zip(scores, self.rows, self.generators, strict=True)
        ]
        return torch.stack(drawn)

    def _drawn(self, scores: Tensor, row: Sampling, generator: torch.Generator) -> Tensor:  # [V]
        scores = nucleus(scores.float() / row.temperature, row.top_p)
        uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        noise = -torch.log(-torch.log(uniform))
        return (scores.double() + noise.to(scores.device)).to(scores.dtype)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Scores [V] with the fewest likeliest tokens that hold `top_p` of the mass, the others at -inf
    (Holtzman et al. 2020)."""
    if top_p >= 1:
        return scores
    ordered, places = scores.softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # mass of all likelier tokens
    return scores.index_fill(0, places[before >= top_p], -torch.inf)
