"""lmms-eval requests as prompts and images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.protocol import ChatMessages
from PIL import Image

from mmkd.chat_marks import without_marks
from mmkd.data.images import open_image, to_rgb
from mmkd.errors import DataError
from mmkd.evaluate.loading import Loaded


@dataclass
class Ask:
    """One request.

    Attributes:
        index: its place among the requests.
        text: the rendered prompt, one image marker for each image.
        image_keys: a hash of each image's content, so that equal images are known however they came.
        settings: the task's generation_kwargs.
    """

    index: int
    text: str
    images: list[Image.Image]
    image_keys: tuple[str, ...]
    settings: dict[str, Any]
    settings_key: str


def read_request(index: int, request: Instance, datasets: dict[str, Any], loaded: Loaded, blind: bool) -> Ask:
    """The prompt of a request; `blind` leaves its images out.

    Raises: DataError for video or audio, which the models here do not read, and for an image that cannot be read.
    """
    _, to_messages, settings, doc_id, task, split = request.args  # pyright: ignore[reportAssignmentType]
    chat = ChatMessages(messages=to_messages(datasets[task][split][doc_id]))
    images, videos, audios = chat.extract_media()
    if videos or audios:
        kind = "video" if videos else "audio"
        raise DataError(
            f"task {task}, question {doc_id} comes with {kind}; mmkd models read images. Leave this task out."
        )
    messages = chat.to_hf_messages()
    marker = getattr(loaded.processor, "image_token", None)
    for message in messages:
        if blind:
            message["content"] = [part for part in message["content"] if part["type"] != "image"]
    if marker:
        messages = without_marks(messages, [marker])  # some tasks write the marker into the question too
    opened = [] if blind else [_open(image, f"of task {task}, question {doc_id},") for image in images]
    text = loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    key = json.dumps(settings, sort_keys=True, default=str)
    return Ask(index, text, opened, tuple(map(_key, opened)), settings, key)


def _open(image: Image.Image | str, name: str) -> Image.Image:
    return open_image(image) if isinstance(image, str) else to_rgb(image, name)


def _key(image: Image.Image) -> str:
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()
