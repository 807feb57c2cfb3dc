"""Moving rotated keys and queries to another position, by the rotary embedding's own rotation."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .carried import carried_cache


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first `cos.shape[-1]` channels of keys [M, H, S, d] in half-split layout; cos, sin [M, 1, 1, r]."""
    width = cos.shape[-1]
    turned, rest = keys[..., :width], keys[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1)


def plain_rotary(decoder: nn.Module) -> nn.Module | None:
    """The rotary embedding of a decoder that turns all its layers alike, else None."""
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None or "layer_type" in inspect.signature(rotary.forward).parameters:
        return None
    return rotary


def moved(rotary: nn.Module, states: list[Tensor], shift: Tensor) -> list[Tensor]:
    """Queries or keys, each [M, H, S, d] after RoPE, moved on by `shift` [M] positions.

    Args:
        rotary: the decoder's rotary embedding (one rotation for all layers).
    """
    cos, sin = rotary(states[0].float(), shift[None])  # [1, M, r] in fp32
    scale = getattr(rotary, "attention_scaling", 1.0)  # some variants stretch the embedding: already in the states
    cos, sin = (t[0, :, None, None].float() / scale for t in (cos, sin))  # [M, 1, 1, r]
    return [rotate(t.float(), cos, sin).to(t.dtype) for t in states]


def query_mover(rotary: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (query [N, H, d], shift [N]) -> query, that moves rotated queries on by `shift` positions."""

    def move(query: Tensor, shift: Tensor) -> Tensor:
        return moved(rotary, [query[:, :, None]], shift)[0][:, :, 0]  # [N, H, 1, d] and back

    return move


@torch.no_grad()
def moved_keys(model: nn.Module, keys: list[Tensor], offsets: list[int]) -> list[Tensor]:
    """Keys of M images encoded at position 0, each moved on by its offset.

    Args:
        keys: per layer [M, Hkv, S, d], after RoPE.

    Raises: ValueError where the decoder's positions cannot be moved so (learned or interleaved positions, or a rotation
        that differs by layer), found by comparing with the decoder itself.
    """
    rotary = plain_rotary(model.decoder)
    if rotary is None:
        raise ValueError(
            f"{type(model.decoder).__name__} has no rotary embedding, or one for each kind of layer, to move a cached "
            "image by; pass pixel_values instead of a cache when a prompt has several images."
        )
    if others := otherwise_turned(model):
        raise ValueError(
            f"layer {others[0]} of {type(model.decoder).__name__} does not move keys by one plain rotation; pass "
            "pixel_values instead of a cache when a prompt has several images."
        )
    return moved(rotary, keys, torch.tensor(offsets, device=keys[0].device))


@torch.no_grad()
def otherwise_turned(model: nn.Module) -> list[int]:
    """Layers of a composed model's decoder that turn keys otherwise than `moved` does (interleaved channels, or not at
    all), found by comparing with the decoder itself; none for a decoder without one rotary embedding for all layers.

    The model must be in eval mode.
    """
    rotary = plain_rotary(model.decoder)
    if rotary is None:
        return []
    # A lone token attends to itself only, so its keys at two positions differ by the rotation and nothing else.
    here, there = _lone_keys(model, 0), _lone_keys(model, 7)
    shift = torch.tensor([7], device=here[0].device)
    found = []
    for layer, (ours, theirs) in enumerate(zip(moved(rotary, here, shift), there, strict=True)):
        # Of the whole key: a channel that is small beside its partner has the partner's rounding error.
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        if not error < (1e-3 if theirs.dtype == torch.float32 else 2e-2):
            found.append(layer)
    return found


def _lone_keys(model: nn.Module, position: int) -> list[Tensor]:
    device = model.get_input_embeddings().weight.device
    cache = carried_cache(model.config.text_config.num_hidden_layers)
    model.decoder(
        inputs_embeds=model.get_input_embeddings()(torch.tensor([[model.config.sink_token_id]], device=device)),
        attention_mask=torch.ones(1, 1, dtype=torch.long, device=device),
        position_ids=torch.tensor([[position]], device=device),
        past_key_values=cache,
        use_cache=True,
    )
    return [layer.new[0] for layer in cache.layers]
