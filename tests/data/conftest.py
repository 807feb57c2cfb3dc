"""A real processor with a tokenizer of bytes, and records that need no download."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from mmkd.data.records import Record, Turn
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_tokenizer

SIDE, IMAGE_TOKENS = 8, 4


@pytest.fixture(scope="session")
def processor() -> MmkdProcessor:
    """8 x 8 pixels, 4 tokens an image, short Q:/A: turns; the pad token is the end token, as in many decoders."""
    tokenizer = byte_tokenizer(image=True)
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=side, do_center_crop=False, crop_size=side)
    return MmkdProcessor(images, tokenizer, chat_template=chat_template("qa", tokenizer), image_tokens=IMAGE_TOKENS)


def png(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A picture of noise, different for each seed."""
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return png


def chat(name: str, *pairs: tuple[str, str], images: list[str | bytes] | None = None) -> Record:
    turns = [turn for q, a in pairs for turn in (Turn("user", q), Turn("assistant", a))]
    return Record(name, turns, images if images is not None else [png(0)])


@pytest.fixture
def record() -> Callable[..., Record]:
    """`record(id, (question, answer), ..., images=[...])`, one picture by default."""
    return chat


@pytest.fixture
def records_file(tmp_path: Path) -> Callable[[list[Record]], Path]:
    """Writes records as JSONL, their pictures beside it."""
    import json

    def write(records: list[Record]) -> Path:
        lines = []
        for number, one in enumerate(records):
            row = one.to_dict()
            row["images"] = []
            for place, image in enumerate(one.images):
                if isinstance(image, bytes):
                    (tmp_path / f"{number}-{place}.png").write_bytes(image)
                    image = f"{number}-{place}.png"
                row["images"].append(image)
            lines.append(json.dumps(row))
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
