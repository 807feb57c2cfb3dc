"""Moving cached keys to another position: the rotary embedding's own rotation, checked before it is believed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first `cos.shape[-1]` channels of keys [M, H, S, d] in half-split layout; cos, sin [M, 1, 1, r]."""
    width = cos.shape[-1]
    turned, rest = keys[..., :width], keys[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1)


@torch.no_grad()
def moved_keys(model: nn.Module, keys: list[Tensor], offsets: list[int]) -> list[Tensor]:
    """Keys of M images encoded at position 0, each moved on by its offset.

    Args:
        keys: per layer [M, Hkv, S, d], after RoPE.

    Raises: ValueError where the decoder's positions cannot be moved so (learned or interleaved positions, or a rotation
        that differs by layer), found by comparing with the decoder itself.
    """
    rotary = getattr(model.decoder, "rotary_emb", None)
    if rotary is None:
        raise ValueError(
            f"{type(model.decoder).__name__} has no rotary embedding to move a cached image by; pass pixel_values "
            "instead of a cache when a prompt has several images."
        )
    turned = _rotate_all(rotary, keys, offsets)
    # A lone token attends to itself only, so its keys at two positions differ by the rotation and nothing else.
    here, there = _lone_keys(model, 0), _lone_keys(model, 7)
    for layer, (a, b) in enumerate(zip(_rotate_all(rotary, here, [7]), there, strict=True)):
        if not torch.allclose(a.float(), b.float(), atol=2e-2 if a.dtype != torch.float32 else 1e-3, rtol=1e-2):
            raise ValueError(
                f"layer {layer} of {type(model.decoder).__name__} does not move keys by one plain rotation; pass "
                "pixel_values instead of a cache when a prompt has several images."
            )
    return turned


def _rotate_all(rotary: nn.Module, keys: list[Tensor], offsets: list[int]) -> list[Tensor]:
    positions = torch.tensor([offsets], device=keys[0].device)
    cos, sin = rotary(keys[0].float(), positions)  # [1, M, r] in fp32
    scale = getattr(rotary, "attention_scaling", 1.0)
    cos, sin = (t[0, :, None, None].float() / scale for t in (cos, sin))
    return [rotate(k.float(), cos, sin).to(k.dtype) for k in keys]


def _lone_keys(model: nn.Module, position: int) -> list[Tensor]:
    from .carried import carried_cache

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
