"""Taking a prompt apart: sink, image placeholders, text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration_mmkd import MmkdConfig


@dataclass
class Prompt:
    """A batch of prompts without sink and placeholders.

    Attributes:
        text_ids, text_mask: [B, T], padded on the left.
        text_index: [B, T] column of each text token in the original `input_ids`.
        image_counts: placeholders of each row.
    """

    text_ids: Tensor
    text_mask: Tensor
    text_index: Tensor
    image_counts: list[int]


def split_prompt(input_ids: Tensor, attention_mask: Tensor | None, config: MmkdConfig) -> Prompt:
    """Split `[pad.., sink, placeholder.., text.., pad..]` rows, [B, L].

    Raises: ValueError where a row does not start with the sink or has placeholders behind text.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    order = mask.cumsum(1) - 1  # [B, L] index among the real tokens of the row
    image = (input_ids == config.image_token_id) & mask.bool()
    counts = image.sum(1)
    expected = (order >= 1) & (order <= counts[:, None]) & mask.bool()
    first = (order == 0) & mask.bool()
    if bool((image != expected).any()) or bool((first & (input_ids != config.sink_token_id)).any()):
        raise ValueError(
            f"a prompt must be the first token {config.sink_token_id}, then all image placeholders, then text; "
            "build it with the model's own processor and chat template."
        )
    is_text = (order > counts[:, None]) & mask.bool()
    lengths = is_text.sum(1)
    length = int(lengths.max())
    index = torch.zeros(len(input_ids), length, dtype=torch.long, device=input_ids.device)
    text_mask = torch.arange(length, device=input_ids.device) >= length - lengths[:, None]
    index[text_mask] = is_text.nonzero()[:, 1]
    return Prompt(input_ids.gather(1, index), text_mask.long(), index, counts.tolist())


def image_rows(image_counts: list[int], sizes: list[int]) -> list[int]:
    """The row of each image, given the placeholders of each row and the placeholders each image takes, in order.

    Raises: ValueError where they do not add up.
    """
    rows, image = [], 0
    for row, count in enumerate(image_counts):
        while count > 0 and image < len(sizes):
            count -= sizes[image]
            rows.append(row)
            image += 1
        if count:
            break
    if image != len(sizes) or len(rows) != len(sizes) or sum(image_counts) != sum(sizes):
        raise ValueError(
            f"the prompts hold {image_counts} image placeholders, the {len(sizes)} images take {sizes}: "
            "use the same voco_tokens for the processor and the model, and pass every image in order."
        )
    return rows
