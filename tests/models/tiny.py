"""Tiny random models around any decoder, and the definition of VoCo they are held against."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mmkd.models import MmkdConfig, MmkdForConditionalGeneration
from mmkd.models.configuration_vision import MmkdVisionConfig

IMAGE, SINK, K = 99, 1, 4

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_GROUPED = {**SIZES, "num_key_value_heads": 2}
_HEADS = {"num_key_value_heads": 2, "head_dim": 8}

DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=None),
    "mistral with a window": MistralConfig(**_GROUPED, sliding_window=200),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**SIZES, **_HEADS),
    "gemma": GemmaConfig(**SIZES, **_HEADS),
    "gemma2": Gemma2Config(**SIZES, **_HEADS, query_pre_attn_scalar=8, sliding_window=200),
    "gemma3": Gemma3TextConfig(**SIZES, **_HEADS, query_pre_attn_scalar=8, sliding_window=200),
    "phi": PhiConfig(**SIZES),
    "neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=100, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.3),
}
# A cached image that stands behind another is moved by rotating its keys; these have no one rotation to do it with.
CANNOT_MOVE = ("gpt2", "gemma3")


def build(
    decoder: str = "llama",
    preset: str = "keep_sink",
    mass_bias: bool = False,
    projector: dict | None = None,
    grid: list[int] | None = None,
    tokens: int | None = K,
    dtype: torch.dtype = torch.float64,
    pooled: bool = False,
) -> MmkdForConditionalGeneration:
    """A random model with a 2x2-patch ViT (4 tokens an image, more with `grid`), in double precision."""
    torch.manual_seed(0)
    vision = MmkdVisionConfig(
        library="timm", architecture="test_vit", architecture_config={"img_size": 32}, image_size=32, grid=grid
    )
    voco = {"tokens": tokens, "preset": preset, "embeddings": "separate", "pooled": pooled, "mass_bias": mass_bias}
    config = MmkdConfig(
        vision_config=vision,
        text_config=DECODERS[decoder].to_dict(),
        projector=projector or {"kind": "linear"},
        voco=voco if tokens else None,
        image_token_id=IMAGE,
        sink_token_id=SINK,
    )
    model = MmkdForConditionalGeneration(config).to(dtype).eval()
    if mass_bias:
        with torch.no_grad():
            model.voco.bias.weight.normal_(std=2.0)
    return model


def features(model: MmkdForConditionalGeneration, images: int, tokens: int = 5) -> Tensor:
    """Projected vision tokens [images, tokens, D]."""
    torch.manual_seed(1)
    return torch.randn(images, tokens, model.config.text_config.hidden_size, dtype=model.dtype)


def pixels(images: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(images, 3, 32, 32, dtype=dtype)


def prompt(placeholders: int, *questions: list[int], side: str = "left") -> dict[str, Tensor]:
    """input_ids and attention_mask of rows [sink, placeholders, question], padded on one side."""
    longest = max(map(len, questions))
    ids, mask = [], []
    for question in questions:
        row, padding = [SINK] + [IMAGE] * placeholders + question, longest - len(question)
        before, after = (padding, 0) if side == "left" else (0, padding)
        ids.append([0] * before + row + [0] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def two_passes(
    model: MmkdForConditionalGeneration, feats: Tensor, text: Tensor, k: int, rows: list[int] | None = None
) -> Tensor:
    """Hidden states [B, T, D] of text read on k tokens of each image; all images in row 0 by default."""
    rows = rows if rows is not None else [0] * len(feats)
    blocks = model.blocks(feats, [1] * len(feats), rows, [0] * len(rows), len(text), K)
    return model.read(model.lay_out(blocks, *model.encode(blocks), k), text, torch.ones_like(text))


def masked_pass(model: MmkdForConditionalGeneration, feats: Tensor, text: Tensor, k: int) -> Tensor:
    """The definition: every image block then the text in one sequence, an explicit mask, positions 0, 1, 2, ..."""
    embed, faithful = model.get_input_embeddings(), model.config.voco["preset"] == "faithful"
    parts, kinds = [], []  # kinds: (kind, image, order in it)
    for i, image in enumerate(feats):
        added = image.mean(0) if model.config.voco["pooled"] else 0.0
        parts += [embed(torch.tensor([SINK])), image, model.voco(K) + added]
        kinds += [("sink", i, 0)] + [("V", i, j) for j in range(len(image))] + [("C", i, j) for j in range(K)]
    parts.append(embed(text[0]))
    kinds += [("T", -1, j) for j in range(text.shape[1])]

    def allow(q: int, key: int) -> bool:
        (kind_q, image_q, _), (kind_k, image_k, order_k) = kinds[q], kinds[key]
        if key > q:
            return False
        if kind_q != "T":
            return image_k == image_q
        if kind_k == "sink":
            return image_k == 0 and not faithful
        return kind_k == "T" or (kind_k == "C" and order_k < k)

    bias = model.voco.mass_bias(K)

    def score(q: int, key: int) -> float:
        biased = bias is not None and kinds[q][0] == "T" and kinds[key][0] == "C"
        return float(bias[kinds[key][2]]) if biased else 0.0

    length, lowest = len(kinds), torch.finfo(model.dtype).min
    mask = torch.tensor([[score(q, c) if allow(q, c) else lowest for c in range(length)] for q in range(length)])
    output = model.decoder(
        inputs_embeds=torch.cat(parts)[None],
        attention_mask=_by_layer(model, mask.to(model.dtype)[None, None]),
        position_ids=torch.arange(length)[None],
        use_cache=False,
    )
    return output.last_hidden_state[:, -text.shape[1] :]


def _by_layer(model: MmkdForConditionalGeneration, mask: Tensor) -> Tensor | dict[str, Tensor]:
    """Decoders with several kinds of layers take a mask for each; the windows here are longer than any sequence."""
    kinds = set(getattr(model.config.text_config, "layer_types", None) or [])
    return dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask
