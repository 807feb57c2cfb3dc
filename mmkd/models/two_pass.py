"""The two passes: encode images as blocks and keep some K,V of them, then read text on what was kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_capture import note_longest
from .blocks import Blocks, build_blocks
from .carried import carried_cache
from .parts import MmkdPreTrainedModel
from .prefix import Prefix, attention_mask, block_mask, gather_prefix, last_seen, read_mask

SLIDING = "sliding_attention"  # among the layer types of a decoder's config; without any, all layers slide


class TwoPassModel(MmkdPreTrainedModel):
    """blocks -> encode -> lay_out -> read, on features; `prefix` is the first three at once."""

    def blocks(
        self,
        features: Tensor | None,
        image_tiles: list[int],
        rows: list[int],
        segments: list[int],
        batch: int,
        tokens: int | None,
        samples: int = 1,
    ) -> Blocks:
        """Lay projected features out as encode blocks.

        Args:
            features: [tiles, n, D] of all images in order, or None where there are none.
            image_tiles: tiles of each image; rows, segments: where each image belongs, row -1 nowhere.
            batch: text rows; samples: packed samples of a row.
            tokens: k for compression (a block for each image), None for full vision (a block for each sample).
        """
        table = self.get_input_embeddings()
        sink = table(torch.tensor([self.config.sink_token_id], device=table.weight.device))  # [1, D]
        images = [tile.flatten(0, 1) for tile in features.split(image_tiles)] if features is not None else []
        compression = self._compression(tokens) if tokens is not None else None  # [k, D]
        pooled = compression is not None and bool(self.config.voco.get("pooled"))
        return build_blocks(images, rows, segments, sink, compression, self.config.voco_tokens, batch, samples, pooled)

    def _compression(self, tokens: int) -> Tensor:
        if self.voco is None:
            raise ValueError("this model was built without compression tokens; read it with full vision (tokens=None).")
        if not 1 <= tokens <= self.voco.tokens:
            raise ValueError(f"tokens={tokens}: this model compresses an image to 1..{self.voco.tokens} tokens.")
        return self.voco(tokens)

    def encode(self, blocks: Blocks) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Run the decoder on the blocks.

        Returns: per layer K,V of the sink, [M, Hkv, 1, d], and of the kept tokens, [M, Hkv, J, d].
        """
        cache, mask = carried_cache(self.config.text_config.num_hidden_layers), blocks.mask.long()
        if self._counts_padding(mask, mask.shape[1]):
            mask = self._own_masks(block_mask(mask), None)
        self.decoder(
            inputs_embeds=blocks.embeds,
            attention_mask=mask,
            position_ids=blocks.positions,
            past_key_values=cache,
            use_cache=True,
        )
        sinks, kept = [], []
        for layer in cache.layers:
            keys, values = layer.new
            index = blocks.kept[:, None, :, None]  # [M, 1, J, 1]
            sinks.append((keys[:, :, :1], values[:, :, :1]))
            kept.append(tuple(t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])) for t in (keys, values)))
        return sinks, kept

    def prefix(self, blocks: Blocks) -> Prefix:
        """Encode the blocks and lay the kept K,V out by text row."""
        return self.lay_out(blocks, *self.encode(blocks))

    def lay_out(
        self,
        blocks: Blocks,
        sinks: list[tuple[Tensor, Tensor]],
        kept: list[tuple[Tensor, Tensor]],
        tokens: int | None = None,
        readers: list[int] | None = None,
    ) -> Prefix:
        """Lay encoded K,V out by text row; of compressed blocks only the first `tokens` C tokens, all by default. Row i
        reads the blocks of row `readers[i]`, its own by default."""
        kept_mask = blocks.kept_mask
        first = int((blocks.positions[:, 0] == 0).nonzero()[0])
        sink = [(k[first], v[first]) for k, v in sinks]
        if bool((blocks.rows < 0).any()) and blocks.embeds.shape[1] > 1:
            # A dummy image reaches no row; tie it in with weight 0, so that every rank's gradient meets every part.
            keys, values = sink[-1]
            sink[-1] = (keys, values + 0.0 * (kept[-1][0].sum() + kept[-1][1].sum()))
        if tokens is not None:
            kept = [(k[:, :, :tokens], v[:, :, :tokens]) for k, v in kept]
            kept_mask = kept_mask[:, :tokens]
        bias, hide = None, False
        if blocks.compressed and self.voco is not None:
            bias = self.voco.mass_bias(kept_mask.shape[1])
            hide = self.config.voco["preset"] == "faithful"
        return gather_prefix(sink, kept, kept_mask, blocks.rows, blocks.segments, blocks.starts, hide, bias, readers)

    def read(
        self,
        prefix: Prefix,
        text_ids: Tensor,
        text_mask: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Run text on a prefix.

        Args:
            text_ids, text_mask: [B, T], padded on either side.
            position_ids: [B, T] index of a token in its sample; counted from the mask by default.
            segment_ids: [B, T] packed sample of a token; all 0 by default.

        Returns: last hidden states [B, T, D] (garbage at padding).
        """
        if position_ids is None:
            position_ids = (text_mask.long().cumsum(1) - 1).clamp_min(0)
        packed = prefix.starts.shape[1] > 1
        segment_ids = segment_ids if packed and segment_ids is not None else torch.zeros_like(text_ids)
        positions = position_ids + prefix.starts.gather(1, segment_ids)  # [B, T]
        mask = torch.cat([prefix.valid.long(), text_mask.long()], dim=1)  # [B, P + T]
        if self._beyond_window(mask.shape[1]):
            note_longest(int(mask.sum(1).max()))
        if packed or prefix.bias is not None or self._counts_padding(mask, mask.shape[1]):
            mask = self._own_masks(read_mask(prefix, text_mask, segment_ids), prefix.bias)
        output = self.decoder(
            inputs_embeds=self.get_input_embeddings()(text_ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=carried_cache(len(prefix.layers), prefix.layers),
            use_cache=True,
        )
        return output.last_hidden_state

    def _beyond_window(self, length: int) -> bool:
        """Whether a layer of the decoder sees less than so many slots."""
        text = self.config.text_config
        window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
        return bool(window) and length > window and (kinds is None or SLIDING in kinds)

    def _counts_padding(self, mask: Tensor, length: int) -> bool:
        """Whether rows of `length` slots, padded as `mask` has it, would have padding in their sliding window. Flash
        attention takes padding out first."""
        flash = "flash" in self.config.text_config._attn_implementation
        return self._beyond_window(length) and not flash and not bool(mask.all())

    def _own_masks(self, see: Tensor, bias: Tensor | None) -> Tensor | dict[str, Tensor]:
        """Masks of ours [B, 1, T, S] from what each query may see; one a kind of layer where the decoder has several.

        Raises: ValueError for an attention implementation that would drop them.
        """
        text = self.config.text_config
        implementation = text._attn_implementation
        if "sdpa" not in implementation and "eager" not in implementation:
            raise ValueError(
                "packed rows, mass_bias, and padding in batches that are longer than a sliding window need a mask of "
                f"their own, which attention {implementation!r} does not take; use attention: sdpa (or eager)."
            )

        def masked(window: int | None) -> Tensor:
            return attention_mask(last_seen(see, window), bias, self.dtype, "sdpa" in implementation)

        if not self._beyond_window(see.shape[-1]):
            return masked(None)
        kinds = sorted(set(getattr(text, "layer_types", None) or [SLIDING]))
        masks = {kind: masked(text.sliding_window if kind == SLIDING else None) for kind in kinds}
        return masks if len(masks) > 1 else masks[SLIDING]


__all__ = ["TwoPassModel"]
