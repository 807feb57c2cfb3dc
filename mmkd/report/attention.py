"""What each compression token looks at: its attention over the image's vision tokens, drawn over the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from mmkd.models.attention_capture import LayerAttention, capture, capture_name
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.report.pictures import data_uri

MOST_TOKENS = 8  # C tokens drawn
CELL = 64  # units of the drawing a picture is wide


@dataclass
class Looked:
    """Attention of the C tokens on one picture.

    Attributes:
        picture: as the model sees it, cropped and resized; a data URI.
        mean: the mean over heads and layers; layers: the mean over heads of each layer. An SVG of one map a token.
        shares: how much of each token's attention goes to the image, mean over heads and layers.
    """

    picture: str
    mean: Markup
    layers: list[Markup]
    shares: list[float]


@torch.no_grad()
def attention_to_image(model: MmkdForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Attention weights of the K compression tokens over the vision tokens of one image.

    Args:
        pixel_values: [tiles, 3, H, W].

    Returns: [layers, H, K, tiles * n]. The rest, up to 1, goes to the sink, to the C tokens before, and to itself.

    Raises: ValueError for a model without compression tokens, RuntimeError for one whose attention cannot be taken.
    """
    features = model.image_features(pixel_values)  # [tiles, n, D]
    tokens = model.config.voco_tokens
    blocks = model.blocks(features, [len(features)], [0], [0], batch=1, tokens=tokens)
    length, vision = blocks.embeds.shape[1], features.shape[0] * features.shape[1]
    positions = torch.arange(1 + vision, length, device=features.device)  # [K], the C tokens
    layers = range(model.config.text_config.num_hidden_layers)
    before = model.config.text_config._attn_implementation
    model.language_model.set_attn_implementation(capture_name("sdpa"))
    try:
        with capture(layers, torch.zeros_like(positions), positions, length) as found:
            model.encode(blocks)
    finally:
        model.language_model.set_attn_implementation(before)
    return torch.stack([_weights(found[layer], positions) for layer in layers])[..., 1 : 1 + vision]


def _weights(layer: LayerAttention, positions: Tensor) -> Tensor:
    """softmax(q k^T) of the captured rows over everything before them, [H, K, S]."""
    query = layer.query.float().transpose(0, 1)  # [K, H, d] -> [H, K, d]
    keys = layer.key[0].float().repeat_interleave(len(query) // layer.key.shape[1], dim=0)  # [H, S, d]
    scores = query @ keys.transpose(1, 2) * layer.scaling
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    later = torch.arange(keys.shape[1], device=keys.device) > positions[:, None]  # [K, S]
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def grid_of(model: MmkdForConditionalGeneration) -> tuple[int, int] | None:
    """Rows and columns of the vision tokens after the projector; None where they have no place (a resampler)."""
    vision, projector = model.config.vision_config, model.config.projector
    factor = projector.get("factor", 2) if projector.get("kind") in ("pixel_shuffle", "average_pool") else 1
    rows, cols = -(-vision.rows // factor), -(-vision.cols // factor)
    return (rows, cols) if projector.get("kind") != "resampler" else None


def look(model: MmkdForConditionalGeneration, processor: MmkdProcessor, image: Image.Image, name: str) -> Looked:
    """The maps of one picture. Of a tiled image the last tile is drawn, the thumbnail of the whole.

    Args:
        name: an id for the drawing, unique in the page.

    Raises: ValueError where vision tokens have no place in the picture; see `attention_to_image`.
    """
    grid = grid_of(model)
    if grid is None:
        raise ValueError("the projector is a resampler, whose tokens have no place in the picture")
    pixels, _ = processor.image_tensors([image])
    weights = attention_to_image(model, pixels)  # [layers, H, K, tiles * n]
    shares = weights.sum(-1).mean((0, 1))  # [K]
    by_layer = weights.mean(1)[:, :MOST_TOKENS, -grid[0] * grid[1] :].unflatten(2, grid)  # [layers, K, rows, cols]
    picture = data_uri(as_seen(pixels[-1], processor.image_processor))
    return Looked(
        picture,
        _maps(by_layer.mean(0), picture, name),
        [_maps(layer, picture, f"{name}-{i}") for i, layer in enumerate(by_layer)],
        shares[:MOST_TOKENS].tolist(),
    )


def as_seen(pixels: Tensor, image_processor: Any) -> Image.Image:
    """The picture that a tensor [3, H, W] was made from, after crop and resize."""
    if getattr(image_processor, "do_normalize", False):
        mean, std = (
            torch.tensor(getattr(image_processor, name))[:, None, None] for name in ("image_mean", "image_std")
        )
        pixels = pixels.float() * std + mean
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _maps(maps: Tensor, picture: str, name: str) -> Markup:
    """One drawing: for each of the K maps [rows, cols] the picture in grey, and over it the weights, 0 to the map's
    largest."""
    count, rows, cols = maps.shape
    gap, under = 6, 16
    width, height = CELL / cols, CELL / rows
    parts = [
        f'<svg class="maps" viewBox="0 0 {count * (CELL + gap) - gap} {CELL + under}" style="--maps:{count}">'
        f'<defs><image id="{name}" href="{picture}" width="{CELL}" height="{CELL}" preserveAspectRatio="none"/></defs>'
    ]
    for token, weights in enumerate(maps.tolist()):
        left = token * (CELL + gap)
        top = max(max(row) for row in weights)
        parts.append(f'<use href="#{name}" x="{left}" class="below"/>')
        for r, row in enumerate(weights):
            for c, weight in enumerate(row):
                parts.append(
                    f'<rect class="heat" x="{left + c * width:.2f}" y="{r * height:.2f}" width="{width:.2f}" '
                    f'height="{height:.2f}" fill-opacity="{0.9 * weight / top if top else 0:.2f}">'
                    f"<title>{100 * weight:.1f} %</title></rect>"
                )
        parts.append(
            f'<text x="{left + CELL / 2}" y="{CELL + 12}" text-anchor="middle">C{token + 1} · {100 * top:.0f} %</text>'
        )
    return Markup("".join(parts) + "</svg>")
