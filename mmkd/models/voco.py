"""VoCo compression: an image is encoded once with the language model, and only the K,V of a few tokens are kept.

VoCo-LLaMA (Ye et al., arXiv 2406.12275) trains this with a masked single pass. Here it is two ordinary causal passes:

    encode, one block per image:  [sink, V_1 .. V_n, C_1 .. C_K]      keep each layer's K,V of the C tokens
    read:                         text on the cache [sink, C_1 .. C_k of each image], k <= K

which equals the masked pass in values and gradients (tested), needs no mask of ours, and never meets the vision tokens
again. Positions: a block is 1 + n + K long and starts where the block before it ends, whatever k is read; so a smaller
k is a plain slice of a cache and nothing moves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class CompressionTokens(nn.Module):
    """The C tokens: one embedding each, or one for all, and an optional bias on their attention scores.

    The bias (one scalar per token; Fast KV Compaction via Attention Matching, arXiv 2602.16284) lets k keys carry the
    attention mass of n.
    """

    def __init__(self, tokens: int, width: int, embeddings: str = "separate", mass_bias: bool = False):
        super().__init__()
        self.tokens = tokens
        self.embedding = nn.Embedding(tokens if embeddings == "separate" else 1, width)
        self.bias = nn.Embedding(tokens, 1) if mass_bias else None

    def forward(self, tokens: int) -> Tensor:
        """Embeddings of the first `tokens` C tokens, [tokens, D]."""
        index = torch.arange(tokens, device=self.embedding.weight.device)
        return self.embedding(index if self.embedding.num_embeddings > 1 else torch.zeros_like(index))

    def mass_bias(self, tokens: int) -> Tensor | None:
        """Score biases of the first `tokens` C tokens, [tokens], or None."""
        if self.bias is None:
            return None
        return self.bias(torch.arange(tokens, device=self.bias.weight.device)).squeeze(-1)


class CarriedLayer(DynamicLayer):
    """A cache layer that returns past + new without keeping the sum.

    `update` has no lasting effect on what it returns next time, so that activation checkpointing may run a layer twice.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.new is None:
            self.new = (key_states, value_states)
        if not self.is_initialized:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def carried_cache(layers: int, past: list[tuple[Tensor, Tensor]] | None = None) -> DynamicCache:
    """A DynamicCache of CarriedLayers, empty or holding `past` K,V ([B, H, S, d] a layer)."""
    cache = DynamicCache()
    cache.layers = [CarriedLayer(*past[i]) if past else CarriedLayer() for i in range(layers)]
    return cache


@dataclass
class Blocks:
    """A batch of encode blocks, ready for the decoder.

    Attributes:
        embeds: [M, L, D] inputs: sink, vision tokens, padding, then C tokens if any.
        mask: [M, L] bool, real tokens.
        positions: [M, L].
        kept: [M, J] index into L of the tokens whose K,V are kept.
        kept_mask: [M, J] bool.
        rows, segments: [M] where the block goes; row -1 goes nowhere (a dummy image).
        compressed: True where the kept tokens are C tokens, False where they are vision tokens.
        starts: [B, S] position at which the text of each segment starts.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    kept: Tensor
    kept_mask: Tensor
    rows: Tensor
    segments: Tensor
    compressed: bool
    starts: Tensor


@dataclass
class Prefix:
    """What text reads instead of an image: K,V of the sink and of the kept image tokens, one row per text row.

    Attributes:
        layers: K,V of each layer, [B, Hkv, P, d]; slot 0 is the sink.
        valid: [B, P] bool.
        segments: [B, P] packed sample of each slot; the sink belongs to all.
        starts: [B, S] position at which the text of each segment starts.
        bias: [B, P] added to the attention scores of a slot, or None.
        hide_sink: True where text that has an image must not see the sink (the faithful preset).
    """

    layers: list[tuple[Tensor, Tensor]]
    valid: Tensor
    segments: Tensor
    starts: Tensor
    bias: Tensor | None = None
    hide_sink: bool = False

    @property
    def sink_slots(self) -> Tensor:
        slots = torch.zeros_like(self.valid)
        slots[:, 0] = self.valid[:, 0]
        return slots

    @property
    def image_slots(self) -> Tensor:
        return self.valid & ~self.sink_slots

    def cache(self) -> DynamicCache:
        """An ordinary growing cache, for decoding."""
        return DynamicCache([(k, v) for k, v in self.layers])


def gather_prefix(
    sink: list[tuple[Tensor, Tensor]],
    kept: list[tuple[Tensor, Tensor]],
    kept_mask: Tensor,
    rows: Tensor,
    segments: Tensor,
    starts: Tensor,
    hide_sink: bool,
    bias: Tensor | None = None,
) -> Prefix:
    """Lay the kept K,V of M blocks out by text row.

    Args:
        sink: per layer K,V [Hkv, 1, d] of the sink at position 0.
        kept: per layer K,V [M, Hkv, J, d].
        kept_mask: [M, J]; rows, segments: [M]; starts: [B, S].
        bias: [J] score bias of the kept tokens, or None.
    """
    batch = starts.shape[0]
    device = starts.device
    blocks_of_row: list[list[int]] = [[] for _ in range(batch)]
    for block, row in enumerate(rows.tolist()):
        if row >= 0:
            blocks_of_row[row].append(block)
    count = kept_mask.shape[1]
    most = max((len(blocks) for blocks in blocks_of_row), default=0)
    slots = 1 + most * count

    # index [B, P]: which of the flattened (block, kept) entries stands in a slot; entry 0 is the sink
    index = torch.zeros(batch, slots, dtype=torch.long)
    valid = torch.zeros(batch, slots, dtype=torch.bool)
    slot_segments = torch.zeros(batch, slots, dtype=torch.long)
    mask, block_segments = kept_mask.cpu(), segments.tolist()
    for row, blocks in enumerate(blocks_of_row):
        for place, block in enumerate(blocks):
            at = slice(1 + place * count, 1 + (place + 1) * count)
            index[row, at] = 1 + block * count + torch.arange(count)
            valid[row, at] = mask[block]
            slot_segments[row, at] = block_segments[block]
    has_image = valid.any(1)
    single = starts.shape[1] == 1
    # With one sample a row the sink is simply left out; packed rows hide it sample by sample, in the read mask.
    valid[:, 0] = ~has_image if hide_sink and single else True
    index, valid, slot_segments = index.to(device), valid.to(device), slot_segments.to(device)

    def lay_out(entries: Tensor, sink_entry: Tensor) -> Tensor:
        heads, width = entries.shape[1], entries.shape[3]
        flat = entries.transpose(1, 2).reshape(-1, heads, width)  # [M * J, Hkv, d]
        flat = torch.cat([sink_entry.transpose(0, 1).to(flat.dtype), flat])  # [1 + M * J, Hkv, d]
        return flat[index].transpose(1, 2)  # [B, Hkv, P, d]

    layers = [(lay_out(k, sk), lay_out(v, sv)) for (k, v), (sk, sv) in zip(kept, sink, strict=True)]
    slot_bias = None
    if bias is not None:
        slot_bias = torch.cat([bias.new_zeros(1), bias.repeat(most)]).expand(batch, slots)
    return Prefix(layers, valid, slot_segments, starts, slot_bias, hide_sink and not single)


def read_mask(prefix: Prefix, text_mask: Tensor, segment_ids: Tensor, dtype: torch.dtype, boolean: bool) -> Tensor:
    """The explicit mask of the read pass, for packed rows and for score biases.

    A text token sees the image slots of its own sample, the sink, and earlier text of its own sample.

    Returns: [B, 1, T, P + T], bool (True = see) if `boolean`, else additive in `dtype`.
    """
    batch, length = text_mask.shape
    slots = prefix.valid.shape[1]
    own = prefix.segments[:, None, :] == segment_ids[:, :, None]  # [B, T, P]
    sink = torch.zeros(batch, length, slots, dtype=torch.bool, device=text_mask.device)
    sink[:, :, 0] = True
    if prefix.hide_sink:
        sink[:, :, 0] = ~(own & prefix.image_slots[:, None, :]).any(-1)
    see_prefix = prefix.valid[:, None, :] & torch.where(sink, sink, own)
    see_prefix[:, :, 0] &= sink[:, :, 0]
    causal = torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    see_text = causal & (segment_ids[:, None, :] == segment_ids[:, :, None]) & text_mask[:, None, :].bool()
    see_text = see_text | torch.eye(
        length, dtype=torch.bool, device=text_mask.device
    )  # padding rows see themselves: no NaN
    see = torch.cat([see_prefix, see_text], dim=-1)[:, None]  # [B, 1, T, P + T]
    if boolean and prefix.bias is None:
        return see
    additive = torch.zeros(see.shape, dtype=dtype, device=see.device)
    if prefix.bias is not None:
        additive = additive + nn.functional.pad(prefix.bias.to(dtype), (0, length))[:, None, None, :]
    return additive.masked_fill(~see, torch.finfo(dtype).min)


@dataclass
class VocoCache:
    """Compressed images: what `compress` returns, and what can be kept on disk instead of an image.

    Attributes:
        layers: per layer K,V [M, Hkv, 1 + k, d] of the sink and the C tokens, encoded at position 0.
        image_tokens: [M] vision tokens n each image was compressed from.
        bias: [k] score biases of the C tokens, or None.
        identity: what must agree before the cache may be read: model, processor, K, k, dtype, rope, preset.
    """

    layers: list[tuple[Tensor, Tensor]]
    image_tokens: Tensor
    bias: Tensor | None
    identity: dict[str, str]

    @property
    def tokens(self) -> int:
        return self.layers[0][0].shape[2] - 1

    def __len__(self) -> int:
        return self.layers[0][0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of K,V per image, the sink (shared by all images) not counted."""
        return sum(t[:1, :, 1:].numel() * t.element_size() for layer in self.layers for t in layer)

    def keep(self, tokens: int) -> VocoCache:
        """The same images read with fewer tokens. Raises ValueError for more than the cache holds."""
        if not 1 <= tokens <= self.tokens:
            raise ValueError(
                f"this cache holds {self.tokens} tokens an image; {tokens} cannot be kept (1..{self.tokens})."
            )
        layers = [(k[:, :, : 1 + tokens], v[:, :, : 1 + tokens]) for k, v in self.layers]
        bias = self.bias[:tokens] if self.bias is not None else None
        return replace(self, layers=layers, bias=bias, identity={**self.identity, "tokens": str(tokens)})

    def select(self, images: list[int]) -> VocoCache:
        """Some of the images, in the order given; an image may be named more than once."""
        index = torch.tensor(images, device=self.image_tokens.device)
        return replace(
            self, layers=[(k[index], v[index]) for k, v in self.layers], image_tokens=self.image_tokens[index]
        )

    def save(self, path: str) -> None:
        """Write one safetensors file with the identity record in its header."""
        tensors = {"image_tokens": self.image_tokens.contiguous()}
        for i, (k, v) in enumerate(self.layers):
            tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"] = k.contiguous(), v.contiguous()
        if self.bias is not None:
            tensors["bias"] = self.bias.contiguous()
        save_file(
            tensors, path, metadata={"format": "mmkd.voco/1", "identity": json.dumps(self.identity, sort_keys=True)}
        )

    @classmethod
    def load(cls, path: str, device: str = "cpu") -> VocoCache:
        """Read a file written by `save`; whether it fits a model is checked when it is read with one.

        Raises: ValueError if it is no such file.
        """
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "mmkd.voco/1":
                raise ValueError(
                    f"{path} is not a VoCo cache (format {metadata.get('format')!r}, expected 'mmkd.voco/1')."
                )
            names = set(file.keys())
            count = sum(name.endswith(".keys") for name in names)
            layers = [
                (file.get_tensor(f"layers.{i}.keys"), file.get_tensor(f"layers.{i}.values")) for i in range(count)
            ]
            bias = file.get_tensor("bias") if "bias" in names else None
            return cls(layers, file.get_tensor("image_tokens"), bias, json.loads(metadata["identity"]))

    def require(self, identity: dict[str, str]) -> None:
        """Raise ValueError naming every field in which this cache and the reading model differ (k may be smaller)."""
        differing = [
            f"{name}: cache {self.identity.get(name)!r}, model {value!r}"
            for name, value in identity.items()
            if self.identity.get(name) != value
        ]
        if differing:
            raise ValueError(
                "this VoCo cache was made by another model or setting; compress again. " + "; ".join(differing)
            )


__all__ = [
    "Blocks",
    "CarriedLayer",
    "CompressionTokens",
    "Prefix",
    "VocoCache",
    "carried_cache",
    "gather_prefix",
    "read_mask",
]
