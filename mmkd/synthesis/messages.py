"""Turns and images as OpenAI's messages."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image
from pydantic import BaseModel

from mmkd.data.images import open_image, read_image
from mmkd.data.records import Turn
from mmkd.synthesis.backends import with_images_first
from mmkd.synthesis.prompts import prompt

PNG = b"\x89PNG\r\n\x1a\n"


def to_messages(turns: Sequence[Turn], images: Sequence[str | bytes]) -> list[dict[str, Any]]:
    """Messages, the images at full resolution as PNG data URLs before the first user turn's text.

    Raises: DataError for an image that cannot be read.
    """
    urls = [data_url(image) for image in images]
    messages: list[dict[str, Any]] = []
    for turn, count in with_images_first(turns, len(urls)):
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls[:count]]
        content = [*parts, {"type": "text", "text": turn.text}] if parts else turn.text
        messages.append({"role": turn.role, "content": content})
    return messages


def data_url(image: str | bytes) -> str:
    """The image as every server can read it: upright RGB, no pixel scaled. A PNG of RGB or grey goes as it is."""
    data = read_image(image)
    opened = open_image(data)  # also refuses what is broken, before anybody is paid to find out
    if not (data.startswith(PNG) and _plain(data)):
        buffer = io.BytesIO()
        opened.save(buffer, "PNG")
        data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _plain(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        # EXIF may say that it lies on its side, which not every server heeds.
        return image.mode in ("RGB", "L") and "transparency" not in image.info and "exif" not in image.info


def with_schema(messages: list[dict[str, Any]], schema: type[BaseModel]) -> list[dict[str, Any]]:
    """The messages with the schema stated at the end of the last turn."""
    said = prompt("json_answer").render(schema=json.dumps(schema.model_json_schema(), ensure_ascii=False))
    text = "\n\n" + said[-1].text
    last = messages[-1]
    content = last["content"]
    content = content + text if isinstance(content, str) else [*content[:-1], _longer(content[-1], text)]
    return [*messages[:-1], {**last, "content": content}]


def _longer(part: dict[str, Any], text: str) -> dict[str, Any]:
    return {**part, "text": part["text"] + text}
