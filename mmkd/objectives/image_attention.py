"""What attention reads from the image: the image's part of a layer's output, and its odds against the text.

Attention over two sets of keys is exactly the merge of the two sets' own results, weighted by their softmax masses.
So for one query and head the image enters a layer only through `o`, the softmax-weighted value over its slots alone,
and `lse`, the log of their summed exponential scores. Everything here is per query and head; no attention map of the
sequence is built.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmkd.models.attention_capture import LayerAttention
from mmkd.objectives.base import AnswerBatch, Outputs
from mmkd.objectives.rows import HIDDEN, Rows, answer_rows


def rows_with_image(batch: AnswerBatch, sides: list[Outputs]) -> Rows:
    """Select the answer rows whose own sample has an image slot on every side."""
    segment = batch.segment_ids[batch.rows, batch.positions]  # [N]
    has_image = torch.ones_like(segment, dtype=torch.bool)
    for side in sides:
        own = side.slot_segments[batch.rows] == segment[:, None]  # [N, P]
        has_image &= (own & side.image_slots[batch.rows]).any(-1)
    return answer_rows(batch, has_image)


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
