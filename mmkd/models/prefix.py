"""What the read pass reads instead of images: K,V of the sink and of the kept image tokens, one row per text row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass
class Prefix:
    """What text reads instead of an image: K,V of the sink and of the kept image tokens, one row per text row.

    Attributes:
        layers: K,V of each layer, [B, Hkv, P, d]; slot 0 is the sink.
        valid: [B, P] bool.
        segments: [B, P] packed sample of each slot; the sink belongs to all.
        starts: [B, S] position at which the text of each segment starts.
        bias: [B, P] added to the attention scores of a slot, or None.
        hide_sink: True where text that has an image must not see the sink (the faithful preset).
    """

    layers: list[tuple[Tensor, Tensor]]
    valid: Tensor
    segments: Tensor
    starts: Tensor
    bias: Tensor | None = None
    hide_sink: bool = False

    @property
    def sink_slots(self) -> Tensor:
        slots = torch.zeros_like(self.valid)
        slots[:, 0] = self.valid[:, 0]
        return slots

    @property
    def image_slots(self) -> Tensor:
        return self.valid & ~self.sink_slots

    def cache(self) -> DynamicCache:
        """An ordinary growing cache, for decoding."""
        return DynamicCache([(k, v) for k, v in self.layers])


def gather_prefix(
    sink: list[tuple[Tensor, Tensor]],
    kept: list[tuple[Tensor, Tensor]],
    kept_mask: Tensor,
    rows: Tensor,
    segments: Tensor,
    starts: Tensor,
    hide_sink: bool,
    bias: Tensor | None = None,
    readers: list[int] | None = None,
) -> Prefix:
    """Lay the kept K,V of M blocks out by text row.

    Args:
        sink: per layer K,V [Hkv, 1, d] of the sink at position 0.
        kept: per layer K,V [M, Hkv, J, d].
        kept_mask: [M, J]; rows, segments: [M]; starts: [B, S].
        bias: [J] score bias of the kept tokens, or None.
        readers: [B] for each text row the one whose blocks it reads; its own by default.
    """
    batch = starts.shape[0]
    device = starts.device
    blocks_of_row: list[list[int]] = [[] for _ in range(batch)]
    for block, row in enumerate(rows.tolist()):
        if row >= 0:
            blocks_of_row[row].append(block)
    if readers is not None:
        blocks_of_row, starts = [blocks_of_row[row] for row in readers], starts[readers]
    count = kept_mask.shape[1]
    most = max((len(blocks) for blocks in blocks_of_row), default=0)
    slots = 1 + most * count

    # index [B, P]: which of the flattened (block, kept) entries stands in a slot; entry 0 is the sink
    index = torch.zeros(batch, slots, dtype=torch.long)
    valid = torch.zeros(batch, slots, dtype=torch.bool)
    slot_segments = torch.zeros(batch, slots, dtype=torch.long)
    mask, block_segments = kept_mask.cpu(), segments.tolist()
    for row, blocks in enumerate(blocks_of_row):
        for place, block in enumerate(blocks):
            at = slice(1 + place * count, 1 + (place + 1) * count)
            index[row, at] = 1 + block * count + torch.arange(count)
            valid[row, at] = mask[block]
            slot_segments[row, at] = block_segments[block]
    has_image = valid.any(1)
    single = starts.shape[1] == 1
    # With one sample a row the sink is simply left out; packed rows hide it sample by sample, in the read mask.
    valid[:, 0] = ~has_image if hide_sink and single else True
    index, valid, slot_segments = index.to(device), valid.to(device), slot_segments.to(device)

    def lay_out(entries: Tensor, sink_entry: Tensor) -> Tensor:
        heads, width = entries.shape[1], entries.shape[3]
        flat = entries.transpose(1, 2).reshape(-1, heads, width)  # [M * J, Hkv, d]
        flat = torch.cat([sink_entry.transpose(0, 1).to(flat.dtype), flat])  # [1 + M * J, Hkv, d]
        return flat[index].transpose(1, 2)  # [B, Hkv, P, d]

    layers = [(lay_out(k, sk), lay_out(v, sv)) for (k, v), (sk, sv) in zip(kept, sink, strict=True)]
    slot_bias = None
    if bias is not None:
        slot_bias = torch.cat([bias.new_zeros(1), bias.repeat(most)]).expand(batch, slots)
    return Prefix(layers, valid, slot_segments, starts, slot_bias, hide_sink and not single)


def last_seen(see: Tensor, window: int | None) -> Tensor:
    """Of the keys that each query sees, the last `window`. A decoder counts its window in slots, padding included, and
    padding that sees nothing in it becomes NaN; this is the window that a row has by itself.

    Args:
        see: [.., T, S] bool.
    """
    return see if window is None else see & (see.flip(-1).cumsum(-1).flip(-1) <= window)


def block_mask(mask: Tensor) -> Tensor:
    """What each token of a block sees, [M, 1, S, S] bool, for blocks with padding, [M, S]."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)  # padding sees itself: no NaN
    return ((causal & mask[:, None, :].bool()) | itself)[:, None]


def read_mask(prefix: Prefix, text_mask: Tensor, segment_ids: Tensor) -> Tensor:
    """What each text token sees, for packed rows, score biases, and padding inside a row: the image slots of its own
    sample, the sink, and earlier text of its own sample.

    Returns: [B, 1, T, P + T] bool.
    """
    batch, length = text_mask.shape
    slots = prefix.valid.shape[1]
    own = prefix.segments[:, None, :] == segment_ids[:, :, None]  # [B, T, P]
    sink = torch.zeros(batch, length, slots, dtype=torch.bool, device=text_mask.device)
    sink[:, :, 0] = True
    if prefix.hide_sink:
        sink[:, :, 0] = ~(own & prefix.image_slots[:, None, :]).any(-1)
    see_prefix = prefix.valid[:, None, :] & torch.where(sink, sink, own)
    see_prefix[:, :, 0] &= sink[:, :, 0]
    causal = torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    see_text = causal & (segment_ids[:, None, :] == segment_ids[:, :, None]) & text_mask[:, None, :].bool()
    see_text = see_text | torch.eye(
        length, dtype=torch.bool, device=text_mask.device
    )  # padding rows see themselves: no NaN
    return torch.cat([see_prefix, see_text], dim=-1)[:, None]  # [B, 1, T, P + T]


def attention_mask(see: Tensor, bias: Tensor | None, dtype: torch.dtype, boolean: bool) -> Tensor:
    """What an attention implementation is given of [B, 1, T, S] bool: itself if it takes `boolean`, else additive.

    Args:
        bias: [B, P] added to the scores of the first keys, or None.
    """
    if boolean and bias is None:
        return see
    additive = torch.zeros(see.shape, dtype=dtype, device=see.device)
    if bias is not None:
        additive = additive + nn.functional.pad(bias.to(dtype), (0, see.shape[-1] - bias.shape[1]))[:, None, None, :]
    return additive.masked_fill(~see, torch.finfo(dtype).min)


__all__ = ["Prefix", "attention_mask", "block_mask", "gather_prefix", "last_seen", "read_mask"]
