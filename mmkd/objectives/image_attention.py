"""What attention reads from the image: the image's part of a layer's output, and its odds against the text.

Attention over two sets of keys is exactly the merge of the two sets' own results, weighted by their softmax masses.
So for one query and head the image enters a layer only through `o`, the softmax-weighted value over its slots alone,
and `lse`, the log of their summed exponential scores. Everything here is per query and head; no attention map of the
sequence is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmkd.models.attention_capture import LayerAttention
from mmkd.objectives.base import AnswerBatch, Outputs

HIDDEN = -1e30  # finite, so that an empty set gives weight 0 and no NaN in backward


@dataclass
class Rows:
    """The answer rows that have an image, laid out by batch row so that one product serves them all.

    Attributes:
        index: [R] which of the N answer rows; row, place: [R] where each stands in [B, M].
        segment, position: [B, M] packed sample and text index.
        text: [B, M, T] bool, text each row sees.
    """

    index: Tensor
    row: Tensor
    place: Tensor
    segment: Tensor
    position: Tensor
    text: Tensor

    def lay_out(self, values: Tensor) -> Tensor:
        """[N, ..] -> [B, M, ..], zeros where there is no row."""
        padded = values.new_zeros(*self.position.shape, *values.shape[1:])
        return padded.index_put((self.row, self.place), values[self.index])

    def pick(self, values: Tensor) -> Tensor:
        """[B, M, ..] -> [R, ..]."""
        return values[self.row, self.place]

    def sees(self, side: Outputs) -> tuple[Tensor, Tensor]:
        """Prefix slots each row sees on a side, as masks [B, M, P] of image slots and of sinks."""
        own = side.slot_segments[:, None, :] == self.segment[:, :, None]
        return own & side.image_slots[:, None, :], side.sink_slots[:, None, :].expand_as(own)


def rows_with_image(batch: AnswerBatch, sides: list[Outputs]) -> Rows:
    """Select the answer rows whose own sample has an image slot on every side."""
    segment = batch.segment_ids[batch.rows, batch.positions]  # [N]
    has_image = torch.ones_like(segment, dtype=torch.bool)
    for side in sides:
        own = side.slot_segments[batch.rows] == segment[:, None]  # [N, P]
        has_image &= (own & side.image_slots[batch.rows]).any(-1)
    index = has_image.nonzero()[:, 0]
    index = index[batch.rows[index].argsort(stable=True)]
    row = batch.rows[index]  # [R], sorted
    count = torch.bincount(row, minlength=len(batch.text_mask))  # [B]
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    shape = (len(batch.text_mask), int(count.max()))
    grid_segment, grid_position = segment.new_zeros(shape), segment.new_zeros(shape)
    grid_segment[row, place] = segment[index]
    grid_position[row, place] = batch.positions[index]
    past = torch.arange(batch.text_mask.shape[1], device=row.device) <= grid_position[:, :, None]  # [B, M, T]
    text = past & batch.text_mask[:, None, :].bool() & (batch.segment_ids[:, None, :] == grid_segment[:, :, None])
    return Rows(index, row, place, grid_segment, grid_position, text)


def image_attention(
    query: Tensor,
    layer: LayerAttention,
    image: Tensor,
    sink: Tensor,
    text: Tensor,
    chunk: int,
    rest_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What each query reads from the image in one layer.

    Args:
        query: [B, M, H, d].
        image, sink: [B, M, P] bool; text: [B, M, T] bool.
        chunk: rows of M computed at once; more are computed again in backward.
        rest_lse: [B, M, H] stands in for the lse of sink and text, whose keys are then not looked at.

    Returns:
        w o, [B, M, H, dv]: the image's part of the attention output, w the share of attention that goes to the image;
        lse of the image's scores, [B, M, H]; lse of the scores of sink and text, [B, M, H]. All fp32 or wider.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    seen = layer.key.shape[2] if rest_lse is None else image.shape[-1]
    results = []
    with torch.autocast(query.device.type, enabled=False):
        key, value = layer.key[:, :, :seen].to(wide), layer.value[:, :, : image.shape[-1]].to(wide)
        pieces = [t.split(chunk, dim=1) for t in (query.to(wide), image, sink, text)]
        given = rest_lse.split(chunk, dim=1) if rest_lse is not None else [None] * len(pieces[0])
        for q, *masks, lse in zip(*pieces, given, strict=True):
            arguments = (q, key, value, layer.bias, *masks, lse, layer.scaling, layer.softcap)
            if torch.is_grad_enabled() and len(given) > 1:
                results.append(checkpoint(_split_attention, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                results.append(_split_attention(*arguments))
    read, image_lse, rest_lse = (torch.cat(part, dim=1) for part in zip(*results, strict=True))
    return read, image_lse, rest_lse


def _split_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    image: Tensor,
    sink: Tensor,
    text: Tensor,
    rest_lse: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, heads, width = query.shape
    shared, prefix = key.shape[1], image.shape[-1]
    grouped = query.transpose(1, 2).reshape(batch, shared, heads // shared * rows, width)  # heads of a group share keys
    scores = (grouped @ key.transpose(2, 3) * scaling).view(batch, heads, rows, -1)  # [B, H, M, S]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    slots, words = scores[..., :prefix], scores[..., prefix:]
    if bias is not None:
        slots = slots + bias[:, :, None, :].to(slots.dtype)
    of_image = slots.masked_fill(~image[:, None], HIDDEN)  # [B, H, M, P]
    image_lse = of_image.logsumexp(-1)  # [B, H, M]
    if rest_lse is None:
        visible = torch.cat([slots.masked_fill(~sink[:, None], HIDDEN), words.masked_fill(~text[:, None], HIDDEN)], -1)
        rest = visible.logsumexp(-1)  # [B, H, M]
    else:
        rest = rest_lse.transpose(1, 2)
    share = torch.exp(of_image - torch.logaddexp(image_lse, rest)[..., None])
    share = share.masked_fill(~image[:, None], 0.0)  # a row that sees nothing at all is padding
    read = (share.reshape(batch, shared, -1, prefix) @ value).view(batch, heads, rows, -1)  # [B, H, M, dv]
    return read.transpose(1, 2), image_lse.transpose(1, 2), rest.transpose(1, 2)
