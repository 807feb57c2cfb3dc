"""The encode pass's input: images laid out as blocks of sink, vision tokens and compression tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Blocks:
    """A batch of encode blocks, ready for the decoder.

    Attributes:
        embeds: [M, L, D] inputs: sink, vision tokens, padding, then C tokens if any.
        mask: [M, L] bool, real tokens.
        positions: [M, L].
        kept: [M, J] index into L of the tokens whose K,V are kept.
        kept_mask: [M, J] bool.
        rows, segments: [M] where the block goes; row -1 goes nowhere (a dummy image).
        compressed: True where the kept tokens are C tokens, False where they are vision tokens.
        starts: [B, S] position at which the text of each segment starts.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    kept: Tensor
    kept_mask: Tensor
    rows: Tensor
    segments: Tensor
    compressed: bool
    starts: Tensor


@dataclass
class Place:
    """Where a block goes, which images it holds, and the position at which it starts."""

    row: int
    segment: int
    images: list[int]
    offset: int = 0


def build_blocks(
    images: list[Tensor],
    rows: list[int],
    segments: list[int],
    sink: Tensor,
    compression: Tensor | None,
    reserved: int,
    batch: int,
    samples: int,
    pooled: bool = False,
) -> Blocks:
    """Lay images out: a block for each image with compression tokens, else one for each sample with all its images.

    Args:
        images: vision tokens [n_i, D] of each image; rows, segments: where each image belongs, row -1 nowhere.
        sink: [1, D]; compression: [k, D], or None for full vision.
        reserved: positions that a block keeps for compression tokens, K whatever k is, so that text starts at the same
            position for every k.
        batch: text rows; samples: packed samples of a row.
        pooled: each image's mean vision token is added to its compression tokens.
    """
    compressed = compression is not None
    tail = compression if compressed else sink[:0]  # [k, D]
    lengths = [len(image) for image in images]
    places, starts = _places(lengths, rows, segments, reserved if compressed else 0, compressed, batch, samples)
    vision = [torch.cat([sink[:0], *(images[i] for i in place.images)]) for place in places]  # [n, D] each
    longest, k, device = max(map(len, vision)), len(tail), sink.device
    tails = [tail + v.mean(0) if pooled and len(v) else tail for v in vision]
    embeds = torch.stack(
        [torch.cat([sink, v, v.new_zeros(longest - len(v), v.shape[1]), t]) for v, t in zip(vision, tails, strict=True)]
    )  # [M, 1 + longest + k, D]

    count = torch.tensor([len(v) for v in vision])[:, None]  # [M, 1]
    offset = torch.tensor([place.offset for place in places])[:, None]
    order = torch.arange(1 + longest)
    positions = torch.cat([offset + order.minimum(count), offset + 1 + count + torch.arange(k)], dim=1)
    mask = torch.cat([order <= count, torch.ones(len(places), k, dtype=torch.bool)], dim=1)
    if compressed:
        kept = (1 + longest + torch.arange(k)).expand(len(places), k)
        kept_mask = torch.ones_like(kept, dtype=torch.bool)
    else:
        kept = (1 + torch.arange(longest)).expand(len(places), longest)
        kept_mask = kept <= count
    return Blocks(
        embeds=embeds,
        mask=mask.to(device),
        positions=positions.to(device),
        kept=kept.to(device),
        kept_mask=kept_mask.to(device),
        rows=torch.tensor([place.row for place in places]),
        segments=torch.tensor([place.segment for place in places]),
        compressed=compressed,
        starts=starts.to(device),
    )


def _places(
    lengths: list[int], rows: list[int], segments: list[int], reserved: int, apart: bool, batch: int, samples: int
) -> tuple[list[Place], Tensor]:
    """The blocks of images of `lengths` tokens, `apart` or by sample; and the start of each sample's text, [B, S]."""
    found: dict[tuple[int, int, int], Place] = {}
    for image, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        alone = image if apart or row < 0 else -1
        found.setdefault((row, segment, alone), Place(row, segment, [])).images.append(image)
    starts = torch.ones(batch, samples, dtype=torch.long)
    ends: dict[tuple[int, int], int] = {}
    for place in found.values():
        if place.row < 0:
            continue
        place.offset = ends.get((place.row, place.segment), 0)
        end = place.offset + 1 + sum(lengths[i] for i in place.images) + reserved
        ends[place.row, place.segment] = end
        starts[place.row, place.segment] = end
    # Text only: a block that is nothing but the sink.
    return list(found.values()) or [Place(-1, 0, [])], starts


__all__ = ["Blocks", "build_blocks"]
