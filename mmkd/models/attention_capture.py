"""Queries, keys and values of chosen decoder layers, taken as attention receives them, without any attention map.

A decoder switched to `capture_name("sdpa")` runs the same kernel as before. While a `capture` is open, the chosen
layers also leave their K and V and the queries of the rows asked for. Imports torch, transformers and its siblings
only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "mmkd_capture_"
# Without "flash" in it: transformers looks for a kernel by a name that says so, and finds none of ours.
TWINS = {
    "sdpa": PREFIX + "sdpa",
    "eager": PREFIX + "eager",
    "flex_attention": PREFIX + "flex_attention",
    "flash_attention_2": PREFIX + "fa2",
}


class AttentionShape(NamedTuple):
    """Of one decoder layer: H query heads, Hkv heads of keys and values; queries and keys d wide, values dv."""

    heads: int
    shared: int
    width: int
    value_width: int


@dataclass
class LayerAttention:
    """What one decoder layer attends with, after RoPE, at the positions really used.

    Attributes:
        query: [N, H, d], the answer rows only.
        key: [B, Hkv, S, d]; S = P + T: P prefix slots (sink and image tokens), then T text slots.
        value: [B, Hkv, S, dv].
        scaling: factor on the scores.
        softcap: scores are softcap * tanh(scores / softcap), where the layer does so.
        bias: [B, 1 or H, P] added to the scores of the prefix slots, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    softcap: float | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(self.query.shape[1], self.key.shape[1], self.query.shape[-1], self.value.shape[-1])


@dataclass
class _Capture:
    layers: frozenset[int]
    rows: Tensor  # [N]
    positions: Tensor  # [N], in the text, which is the last `text_length` queries
    text_length: int
    grad: bool
    longest: int | None = None  # tokens of the longest row of the pass, see `note_longest`
    seen: dict[int, LayerAttention] = field(default_factory=dict)


_open: ContextVar[_Capture | None] = ContextVar("mmkd_capture", default=None)


def capture_name(implementation: str) -> str:
    """Name of the capturing twin of an attention implementation, for `model.set_attn_implementation`.

    Raises: ValueError for an implementation that has none.
    """
    if implementation in TWINS.values():
        return implementation
    if implementation not in TWINS:
        raise ValueError(
            f"attention {implementation!r} cannot hand out its queries and keys; train attention distillation with "
            f"one of {', '.join(TWINS)} (the released model may use any)."
        )
    return TWINS[implementation]


def plain_name(implementation: str) -> str:
    """The attention implementation that `capture_name` made a twin of."""
    return next((plain for plain, twin in TWINS.items() if twin == implementation), implementation)


@contextmanager
def capture(
    layers: Sequence[int], rows: Tensor, positions: Tensor, text_length: int
) -> Iterator[dict[int, LayerAttention]]:
    """Collect the attention inputs of `layers` during one pass of one decoder.

    Rows are picked as soon as a layer has its queries, so that none of other rows are held for this. Keys and values
    are kept whole: rows attend to all of them.

    Open it around a single pass (not around an encode and a read pass together) and leave it before `backward`, where
    activation checkpointing runs layers again.

    Args:
        layers: decoder layers, from 0.
        rows, positions: [N] batch row and text index of each query wanted. The text is the last `text_length` queries.

    Yields: a dict that is filled, by layer, while the pass runs.

    Raises: RuntimeError where a layer runs twice, runs without gradients under reentrant checkpointing, or never runs.
    """
    state = _Capture(frozenset(layers), rows, positions, text_length, torch.is_grad_enabled())
    token = _open.set(state)
    try:
        yield state.seen
    finally:
        _open.reset(token)
    if missing := sorted(state.layers - state.seen.keys()):
        raise RuntimeError(
            f"layers {missing} handed out no attention; switch the decoder with "
            "set_attn_implementation(capture_name(..)) before the pass, and name layers that it has."
        )


def note_longest(tokens: int) -> None:
    """How many tokens the longest row of the pass under way has, where padding makes its batch longer."""
    if (state := _open.get()) is not None:
        state.longest = tokens


def _record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, options: dict) -> None:
    state = _open.get()
    layer = getattr(module, "layer_idx", None)  # vision towers call the same interface: they are not causal
    if state is None or layer not in state.layers or not getattr(module, "is_causal", False):
        return
    if layer in state.seen:
        raise RuntimeError(
            f"layer {layer} ran twice inside one capture; open a capture around one pass of one model, and leave it "
            "before backward (activation checkpointing runs layers again there)."
        )
    if state.grad and module.training and not torch.is_grad_enabled():
        raise RuntimeError(
            f"layer {layer} runs without gradients inside a capture: reentrant activation checkpointing would cut "
            "attention distillation from the model; use gradient_checkpointing_kwargs={'use_reentrant': False}. For a "
            "pass that needs no gradients, open the capture inside torch.no_grad()."
        )
    window = options.get("sliding_window")
    longest = key.shape[2] if state.longest is None else state.longest
    if window is not None and longest > window:
        raise RuntimeError(
            f"layer {layer} sees only the last {window} of {longest} tokens, so image and text cannot be told "
            "apart there; choose layers with full attention."
        )
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise RuntimeError(f"layer {layer} adds learned sinks or position biases to its scores; choose another model.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    first = query.shape[2] - state.text_length
    # Activation checkpointing must find the same tensors saved in a layer when it runs it again without a capture:
    # behind hooks of our own, it sees nothing of what this saves, which are indices alone.
    with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        picked = query.transpose(1, 2)[state.rows, first + state.positions]  # [B, H, Q, d] -> [N, H, d]
    state.seen[layer] = LayerAttention(picked, key, value, float(scaling), options.get("softcap"))


class _NamedLayer:
    """An attention layer as flash attention reads it, which picks its kernel by the name in the layer's config."""

    def __init__(self, layer: nn.Module, implementation: str):
        self._layer, self.config = layer, copy(layer.config)
        self.config._attn_implementation_internal = implementation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _capturing(implementation: str) -> Callable:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        _record(module, query, key, value, scaling, options)
        layer: Any = module
        if implementation == "eager":  # every model file of transformers has its own
            run = sys.modules[type(module).__module__].eager_attention_forward
        else:
            run = ALL_ATTENTION_FUNCTIONS[implementation]
        if implementation.startswith("flash"):
            layer = _NamedLayer(module, implementation)
        return run(layer, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)

    return attention


for _plain, _twin in TWINS.items():
    AttentionInterface.register(_twin, _capturing(_plain))
    AttentionMaskInterface.register(_twin, ALL_MASK_ATTENTION_FUNCTIONS[_plain])


__all__ = ["LayerAttention", "capture", "capture_name", "plain_name"]
