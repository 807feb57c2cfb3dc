"""Questions about images, as arguments of `generate`; an image that was asked about lately is not read again.

Under the three ways to use a model by hand: `serve`, `chat` and `compress`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from PIL import Image
from transformers.utils import logging

from mmkd.chat_marks import chat_marks, without_marks
from mmkd.data.images import open_image
from mmkd.errors import ConfigError, DataError
from mmkd.evaluate.loading import Loaded, load
from mmkd.models import VocoCache

Messages = list[dict[str, Any]]


@dataclass
class Counts:
    """How often an image was read, and how often it need not be."""

    compressed: int = 0
    reused: int = 0


class Reader:
    """A loaded model and the compressed images it was asked about last, by the SHA-256 of their encoded bytes.

    Not for several threads at once: all that read images or answer do it in one.

    Args:
        tokens: k, or None to read every vision token of an image (nothing is kept then).
        remember: how many compressed images are kept; of more, the one not asked about for longest goes.

    Raises: ConfigError where the model cannot be read with so many tokens.
    """

    def __init__(self, loaded: Loaded, tokens: int | None, remember: int = 32):
        most = loaded.most_tokens
        if tokens is not None and not 1 <= tokens <= most:
            allowed = f"1 to {most}, or full" if most else "full only, for it has no compression tokens"
            raise ConfigError(f"tokens {tokens}: {loaded.name} reads an image as {allowed}.")
        if remember < 1:
            raise ConfigError(f"{remember} images to remember: at least 1.")
        self.loaded, self.tokens, self.remember = loaded, tokens, remember
        self.counts = Counts()
        self._marks = chat_marks(loaded.processor.tokenizer, getattr(loaded.processor, "image_token", None))
        self._kept: OrderedDict[str, VocoCache] = OrderedDict()

    @classmethod
    def open(cls, model: str, tokens: int | Literal["full"] | None = None, remember: int = 32) -> Reader:
        """Load a release, a model folder, a run folder or a hub id, onto the GPU where there is one.

        Args:
            tokens: k or "full"; the model's own by default: all its compression tokens, or full if it has none.

        Raises: ConfigError where there is no such model, or it cannot be read so.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _no_progress_bar():
            loaded = load(model_folder(model), None, device, trust_remote_code=False)
        if tokens is None:
            tokens = loaded.most_tokens or "full"
        return cls(loaded, None if tokens == "full" else tokens, remember)

    def compress(self, images: list[Image.Image]) -> VocoCache:
        """The images as k tokens each, together; nothing is remembered."""
        pixels, tiles = self.loaded.processor.image_tensors(images)
        device = self.loaded.model.device
        return self.loaded.model.compress(
            pixels.to(device, self.loaded.model.dtype),
            image_tiles=torch.tensor(tiles, device=device),
            tokens=self.tokens,
        )

    def compressed(self, data: bytes) -> VocoCache:
        """One encoded image as k tokens. Raises DataError where it is broken or too large."""
        key = hashlib.sha256(data).hexdigest()
        if key in self._kept:
            self.counts.reused += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        cache = self.compress([open_image(data)])
        self.counts.compressed += 1
        self._kept[key] = cache
        if len(self._kept) > self.remember:
            self._kept.popitem(last=False)
        return cache

    def inputs(self, messages: Messages, images: list[bytes]) -> dict[str, Any]:
        """Arguments of `generate` for one chat.

        Args:
            messages: role and content, a content part {"type": "image"} for each image. What would be a special token
                in their text is left out.
            images: their encoded bytes, in the order of the parts.

        Raises: DataError for an image that is broken or too large, or a chat that the template does not take.
        """
        processor, model = self.loaded.processor, self.loaded.model
        try:
            clean = without_marks(messages, self._marks)
            text = processor.apply_chat_template(clean, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:  # it refuses these roles, or their order
            raise DataError(f"the model's chat template does not take this chat: {error}.") from error
        cache, options = None, {}
        if images and self.tokens is not None:
            cache = VocoCache.join([self.compressed(data) for data in images])
        elif images:
            options["images"] = [open_image(data) for data in images]
        if self.loaded.ours:
            options["voco_tokens"] = self.tokens
        elif (start := processor.tokenizer.bos_token) and text.startswith(start):
            options["add_special_tokens"] = False  # the chat template has already written it
        batch = processor(text=[text], return_tensors="pt", **options)
        inputs = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        if cache is not None:
            inputs["voco_cache"] = cache
        if not images:
            inputs.pop("voco_tokens", None)
        return inputs

    def room(self, inputs: dict[str, Any]) -> int:
        """Tokens that an answer may have before the model runs out of positions.

        Compressed images leave the positions of their vision tokens free, but nothing else stands there.

        Raises: DataError where the chat alone is too long.
        """
        config = self.loaded.model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        length, cache = inputs["input_ids"].shape[1], inputs.get("voco_cache")
        if cache is not None:
            # Each block counts a sink, its vision tokens and K places for compression tokens; the prompt has one sink.
            length += int(cache.image_tokens.sum()) + len(cache) * (1 + config.voco_tokens - cache.tokens) - 1
        if length >= most:
            raise DataError(
                f"this chat is {length:,} tokens long, its images included; the model reads {most:,}. "
                "Start a new chat, or leave out earlier turns or images."
            )
        return most - length


def model_folder(model: str) -> str:
    """`model` itself, or the model/ in it where it is a run folder."""
    inner = Path(model) / "model"
    return str(inner) if not (Path(model) / "config.json").exists() and (inner / "config.json").exists() else model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
