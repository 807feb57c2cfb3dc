"""Records to the tensors a task trains on."""

from __future__ import annotations

from typing import Any

import torch

from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.errors import DataError
from mmkd.models.processing_mmkd import MmkdProcessor

Sample = dict[str, Any]


def prepare(record: Record, processor: MmkdProcessor, max_length: int) -> Sample:
    """Ids, assistant mask and tiles of one record.

    Raises: DataError for wrong roles, an empty answer, an unreadable image, or a length over `max_length` (the sink and
    full-vision image tokens counted).
    """
    roles = [turn.role for turn in record.turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2) or len(body) % 2:
        raise DataError(f"turns must alternate user, assistant; found {', '.join(roles) or 'none'}.")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in record.turns):
        raise DataError("an answer is empty.")
    ids, mask = processor.encode_turns([{"role": t.role, "content": t.text} for t in record.turns])
    tiles: list[int] = []
    pixels = None
    if record.images:
        pixels, tiles = processor.image_tensors([open_image(image) for image in record.images])
    length = 1 + sum(processor.image_token_count(count) for count in tiles) + len(ids)
    if length > max_length:
        raise DataError(f"{length} tokens, images included; data.max_length is {max_length}.")
    return {"id": record.id, "ids": ids, "mask": mask, "pixel_values": pixels, "tiles": tiles}


def collate(samples: list[Sample], processor: MmkdProcessor) -> dict[str, Any]:
    """One micro batch in the text-only layout: image placeholders are not in `input_ids`, the sink neither.

    Returns: input_ids, attention_mask, labels (-100 outside answers), position_ids, segment_ids [B, T];
    pixel_values [tiles, 3, H, W]; image_tiles, image_rows, image_segments [M]; sample_ids.
    A batch without any image gets one blank dummy image of row -1, so that every rank touches tower and projector.
    """
    longest = max(len(sample["ids"]) for sample in samples)
    shape = (len(samples), longest)
    ids = torch.full(shape, processor.tokenizer.pad_token_id)
    attention, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, sample in enumerate(samples):
        length = len(sample["ids"])
        tokens, answer = torch.tensor(sample["ids"]), torch.tensor(sample["mask"], dtype=torch.bool)
        ids[row, :length], attention[row, :length] = tokens, 1
        labels[row, :length] = torch.where(answer, tokens, -100)
    tiles = [count for sample in samples for count in sample["tiles"]]
    rows = [row for row, sample in enumerate(samples) for _ in sample["tiles"]]
    pixels = [sample["pixel_values"] for sample in samples if sample["tiles"]]
    if not tiles:
        from PIL import Image

        side = 8
        blank, _ = processor.image_tensors([Image.new("RGB", (side, side))])
        pixels, tiles, rows = [blank], [1], [-1]
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "labels": labels,
        "position_ids": torch.arange(longest).expand(shape).contiguous(),
        "segment_ids": torch.zeros(shape, dtype=torch.long),
        "pixel_values": torch.cat(pixels),
        "image_tiles": torch.tensor(tiles),
        "image_rows": torch.tensor(rows),
        "image_segments": torch.zeros(len(rows), dtype=torch.long),
        "sample_ids": [sample["id"] for sample in samples],
    }
