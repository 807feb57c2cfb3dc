"""A decoder cache that survives being written twice, so that activation checkpointing may run a layer again."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class CarriedLayer(DynamicLayer):
    """A cache layer that returns past + new without keeping the sum.

    `update` has no lasting effect on what it returns next time, so that activation checkpointing may run a layer twice.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.new is None:
            self.new = (key_states, value_states)
        if not self.is_initialized:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def carried_cache(layers: int, past: list[tuple[Tensor, Tensor]] | None = None) -> DynamicCache:
    """A DynamicCache of CarriedLayers, empty or holding `past` K,V ([B, H, S, d] a layer)."""
    cache = DynamicCache()
    cache.layers = [CarriedLayer(*past[i]) if past else CarriedLayer() for i in range(layers)]
    return cache


__all__ = ["CarriedLayer", "carried_cache"]
