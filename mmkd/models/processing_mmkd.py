"""Messages and images to tensors. Copied into every release."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature, ProcessorMixin

UNSET = "unset"
LONGEST = 16  # times as long as what a crop keeps: beyond it nothing is resized


class MmkdProcessor(ProcessorMixin):
    """Renders a chat, puts the image placeholders behind the first token, cuts images into tiles.

    Args:
        image_processor: a stock transformers image processor.
        tokenizer: the decoder's tokenizer.
        image_tokens: full-vision tokens of one tile, after the projector.
        voco_tokens: k used where a call names none; None or 0 for full vision.
        tiles: most tiles an image is cut into; 1 for none. A tiled image is followed by a thumbnail of the whole.
        image_token: text of one placeholder.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_tokens: int = 1,
        voco_tokens: int | None = None,
        tiles: int = 1,
        image_token: str = "<image>",
        **kwargs: Any,
    ):
        self.image_tokens = image_tokens
        self.voco_tokens = voco_tokens or None
        self.tiles = tiles
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    # --- images ----------------------------------------------------------------------------------------------------

    def image_token_count(self, tiles: int) -> int:
        """Full-vision tokens of an image of so many tiles."""
        return tiles * self.image_tokens

    def image_tensors(self, images: list[Image.Image]) -> tuple[Any, list[int]]:
        """`pixel_values` [tiles, 3, H, W] of all images in order, and the tiles of each."""
        cut = [self._cut(_rgb(image)) for image in images]
        pixels = self.image_processor(images=[tile for tiles in cut for tile in tiles], return_tensors="pt")[
            "pixel_values"
        ]
        return pixels, [len(tiles) for tiles in cut]

    def _cut(self, image: Image.Image) -> list[Image.Image]:
        if self.tiles == 1:
            return [self._middle(image)]
        width, height = image.size
        grids = [(r, c) for r in range(1, self.tiles + 1) for c in range(1, self.tiles + 1) if r * c <= self.tiles]
        # The grid nearest to the image's shape; of equals, the one with the most tiles that the image can fill.
        side = self._tile_side()

        def misfit(grid: tuple[int, int]) -> tuple[float, float]:
            rows, cols = grid
            stretch = max(width * rows, height * cols) / min(width * rows, height * cols)
            return round(stretch, 3), abs(rows * cols - width * height / side**2)

        rows, cols = min(grids, key=misfit)
        if rows * cols == 1:
            return [image]
        whole = image.resize((cols * side, rows * side), Image.Resampling.BICUBIC)
        boxes = [(c * side, r * side, (c + 1) * side, (r + 1) * side) for r in range(rows) for c in range(cols)]
        return [*(whole.crop(box) for box in boxes), image.resize((side, side), Image.Resampling.BICUBIC)]

    def _middle(self, image: Image.Image) -> Image.Image:
        """A long image without ends that would be resized only to be cropped away: a line becomes gigabytes.

        Whole squares are cut off, so that the crop of the resized image stays where it was, to the pixel.
        """
        settings = self.image_processor
        size, (short, long) = dict(settings.size), sorted(image.size)
        crops = settings.do_resize and getattr(settings, "do_center_crop", False)
        if not crops or not size.get("shortest_edge") or size.get("longest_edge"):
            return image
        crop = dict(settings.crop_size)
        kept = max(crop["height"], crop["width"], size["shortest_edge"]) / size["shortest_edge"]  # in short sides
        ends = short * int(max(long / short - LONGEST * kept, 0) / 2)
        across, down = (ends, 0) if image.width == long else (0, ends)
        return image.crop((across, down, image.width - across, image.height - down)) if ends else image

    def _tile_side(self) -> int:
        size = getattr(self.image_processor, "crop_size", None) or self.image_processor.size
        size = dict(size)
        return int(size.get("height") or size["shortest_edge"])

    @property
    def fingerprint(self) -> str:
        """Of everything that turns an image into tensors."""
        settings = {**self.image_processor.to_dict(), "tiles": self.tiles, "image_tokens": self.image_tokens}
        settings = {
            k: v for k, v in settings.items() if k not in ("processor_class", "auto_map", "image_processor_type")
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    # --- text ------------------------------------------------------------------------------------------------------

    def encode_turns(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of a chat without its images and without the first token (the sink), and a mask of what the
        assistant says: its text and its end token. An image marker in the text stands for no image and is left out.

        Raises: ValueError where the template renders a turn differently once others follow it.
        """
        marker = self.image_token  # a space keeps apart what would be another one where one was taken out
        messages = [
            {**message, "content": message["content"].replace(marker, "").replace(marker, " ")} for message in messages
        ]
        text = self._render(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self._render(messages[:i], prompt=True), self._render(messages[: i + 1])
            if not after.startswith(before) or not text.startswith(after.rstrip()):
                raise ValueError(
                    "the chat template changes earlier turns when later ones follow, so the assistant's part cannot be "
                    "told from the prompt; use student.template: qa, chatml, or a template that only appends."
                )
            spans.append((len(before), len(after.rstrip())))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [int(any(a <= start < b for a, b in spans)) for start, _ in encoded["offset_mapping"]]
        return encoded["input_ids"][1:], mask[1:]

    @property
    def answer_end(self) -> int | None:
        """The special token by which the template ends an answer, None where it writes none. Raises: as
        encode_turns."""
        ids, said = self.encode_turns([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = max((place for place, flag in enumerate(said) if flag), default=None)
        added = self.tokenizer.added_tokens_decoder
        return ids[last] if last is not None and ids[last] in added and added[ids[last]].special else None

    def _render(self, messages: list[dict[str, str]], prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=prompt
        )

    # --- the transformers interface --------------------------------------------------------------------------------

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        voco_tokens: int | str | None = UNSET,
        image_tiles: list[int] | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        **kwargs: Any,
    ) -> BatchFeature:
        """Tensors of prompts and images.

        Args:
            images: one, a flat list in prompt order, or a list for each prompt; PIL images, a path, a URL, or
                base64 text. The frames of a video are several images.
            text: prompts with one `image_token` for each image, behind the first token.
            voco_tokens: k placeholders an image; None for full vision; the processor's own by default.
            image_tiles: tiles of each image where a VoCo cache or tower features stand in for `images`; 1 by default.

        Returns: input_ids, attention_mask [B, L], pixel_values [tiles, 3, H, W], image_tiles [M], and voco_tokens.
        """
        if kwargs.get("videos") is not None:
            raise ValueError("this processor takes no videos; give the frames of a video as several images.")
        tokens = self.voco_tokens if voco_tokens == UNSET else voco_tokens
        flat = _flatten(images)
        data: dict[str, Any] = {}
        tiles: list[int] = []
        if flat:
            data["pixel_values"], tiles = self.image_tensors(flat)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            named = sum(t.count(self.image_token) for t in texts)
            if flat and named != len(flat):
                raise ValueError(f"the prompts name {named} images ({self.image_token}), {len(flat)} were given.")
            if named and not flat:
                tiles = [1] * named if image_tiles is None else list(image_tiles)
            if named != len(tiles):
                raise ValueError(f"the prompts name {named} images ({self.image_token}), image_tiles {len(tiles)}.")
            sizes = iter([tokens or self.image_token_count(count) for count in tiles])
            texts = [self._expand(t, sizes) for t in texts]
            data |= self.tokenizer(
                texts,
                add_special_tokens=False,
                padding=padding,
                padding_side=padding_side,
                return_tensors=return_tensors,
            )
        batch = BatchFeature(data, tensor_type=return_tensors)
        if flat or image_tiles is not None:
            import torch

            batch["image_tiles"] = torch.tensor(tiles)
        if tiles:
            batch["voco_tokens"] = tokens
        return batch

    def _expand(self, text: str, sizes: Any) -> str:
        parts = text.split(self.image_token)
        return parts[0] + "".join(self.image_token * next(sizes) + part for part in parts[1:])

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_tiles", "voco_tokens"]


def _flatten(images: Any) -> list[Image.Image]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, str | os.PathLike):
        return [_open(os.fspath(images))]
    raise TypeError(f"an image is a PIL image, a path, a URL or base64 text, not a {type(images).__name__}.")


def _open(source: str) -> Image.Image:
    """What transformers' `load_image` opens, as it is: that one drops transparency and clips 16 bit."""
    try:
        if source.startswith(("http://", "https://")):
            with urlopen(Request(source, headers={"User-Agent": "mmkd"}), timeout=60) as answer:
                data = answer.read()
        elif os.path.isfile(source):
            data = Path(source).read_bytes()
        else:
            data = base64.b64decode(source.split(",")[-1])
        return Image.open(io.BytesIO(data))
    except (ValueError, UnidentifiedImageError) as error:
        shown = source if len(source) <= 300 else f"{source[:300]}.. ({len(source):,} characters)"
        raise ValueError(f"{shown} is no image file, no URL of one, and no base64 text of one.") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Upright, on white, 16 bit as 8: what `mmkd.data.images.to_rgb` does, which a release has not (tested).

    Raises: ValueError for values that have no clear RGB.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"an image has values {values.min()} to {values.max()}; 8 and 16 bit are read. Save it as 8 bit."
            )
        clear = values == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "F":
        raise ValueError("an image has floating-point pixels; 8 and 16 bit are read. Save it as 8 bit.")
    return image.convert("RGB")


__all__ = ["MmkdProcessor"]
