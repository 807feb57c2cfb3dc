"""Answer rows, which stand in a flat list, laid out by batch row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmkd.objectives.base import AnswerBatch, Outputs

HIDDEN = -1e30  # score of what a row does not see: finite, so that an empty set gives weight 0 and no NaN in backward


@dataclass
class Rows:
    """Answer rows laid out by batch row, so that one product serves them all.

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


def answer_rows(batch: AnswerBatch, chosen: Tensor) -> Rows:
    """Lay out the answer rows that the mask `chosen` [N] names."""
    segment = batch.segment_ids[batch.rows, batch.positions]  # [N]
    index = chosen.nonzero()[:, 0]
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
