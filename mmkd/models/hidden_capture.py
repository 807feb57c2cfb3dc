"""Hidden states of chosen decoder layers, at the rows asked for only. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def capture_hidden(
    decoder: nn.Module, layers: Sequence[int], rows: Tensor, positions: Tensor
) -> Iterator[dict[int, Tensor]]:
    """Collect what `layers` put out during one pass of `decoder`, whatever its attention implementation.

    Rows are picked as soon as a layer has run, so a pass without gradients keeps no sequence for this. Hooks of a layer
    stand outside its activation checkpointing, and ours come after DeepSpeed's: gradients take the usual way back.

    Args:
        layers: decoder layers, from 0.
        rows, positions: [N] batch row and sequence index of each state wanted.

    Yields: a dict that is filled while the pass runs: by layer, its output (before the final norm), [N, D].

    Raises: RuntimeError where a layer runs twice or never.
    """
    blocks = decoder_layers(decoder)
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if layer in found:
                raise RuntimeError(f"layer {layer} ran twice inside one capture; open a capture around one pass.")
            hidden = output[0] if isinstance(output, tuple) else output  # [B, T, D]
            found[layer] = hidden[rows, positions]

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if missing := sorted(set(layers) - found.keys()):
        raise RuntimeError(f"layers {missing} did not run inside the capture; open it around a pass of this decoder.")


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The layers of a decoder of transformers, in order."""
    count = decoder.config.num_hidden_layers
    lists = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ValueError(f"{type(decoder).__name__} has no one list of its {count} layers to take hidden states from.")
    return lists[0]


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm between the last layer of a decoder and the head: the last of its own norms (not those of layers)."""
    norms = [module for module in decoder.children() if "norm" in type(module).__name__.lower()]
    if not norms:
        raise ValueError(f"{type(decoder).__name__} has no final norm that stands by itself.")
    return norms[-1]


__all__ = ["capture_hidden", "decoder_layers", "final_norm"]
