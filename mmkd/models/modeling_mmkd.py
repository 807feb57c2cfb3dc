"""The vision-language model of mmkd: any vision tower, a projector, any decoder, and VoCo compression tokens.

Copied into every release and loaded as remote code, so it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_mmkd import MmkdConfig
from .projector import build_projector
from .prompt import image_rows, split_prompt
from .rotation import moved_keys
from .vision_tower import VisionTower
from .voco import Blocks, CompressionTokens, Prefix, VocoCache, carried_cache, gather_prefix, read_mask


class MmkdForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A VLM that reads an image as its n vision tokens, or as k <= K compression tokens."""

    config_class = MmkdConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MmkdConfig):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = VisionTower(vision)
        self.projector = build_projector(
            config.projector, vision.hidden_size, text.hidden_size, rows=vision.rows, cols=vision.cols
        )
        self.language_model = AutoModelForCausalLM.from_config(text)
        self.voco = None
        if config.voco:
            self.voco = CompressionTokens(
                config.voco["tokens"],
                text.hidden_size,
                config.voco.get("embeddings", "separate"),
                config.voco.get("mass_bias", False),
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CompressionTokens) and module.bias is not None:
            init.zeros_(module.bias.weight)

    # --- parts -----------------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [.., V] of hidden states [.., D], with the decoder's own soft cap and scale."""
        logits = self.get_output_embeddings()(hidden)
        text = self.config.text_config
        if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        if (scale := getattr(text, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(text, "logits_scaling", None)) is not None:
            logits = logits / divisor
        return logits

    def image_features(self, pixel_values: Tensor | None = None, tower_features: Tensor | None = None) -> Tensor:
        """Projected vision tokens [tiles, n, D] of pixels [tiles, 3, H, W] or of tower features [tiles, N, D_v]."""
        if tower_features is None:
            if pixel_values is None:
                raise ValueError("image_features needs pixel_values or tower_features.")
            tower_features = self.vision_tower(pixel_values.to(self.dtype))
        return self.projector(tower_features.to(self.dtype))

    # --- encode ----------------------------------------------------------------------------------------------------

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
        device = self.get_input_embeddings().weight.device
        sink = self.get_input_embeddings()(torch.tensor([self.config.sink_token_id], device=device))  # [1, D]
        compression = self._compression(tokens) if tokens is not None else sink[:0]  # [k, D]
        images = [tile.flatten(0, 1) for tile in features.split(image_tiles)] if features is not None else []
        groups: dict[tuple[int, int, int], list[int]] = {}  # (row, segment, image or 0) -> images of the block
        for image, (row, segment) in enumerate(zip(rows, segments, strict=True)):
            alone = image if tokens is not None or row < 0 else -1
            groups.setdefault((row, segment, alone), []).append(image)

        starts = torch.ones(batch, samples, dtype=torch.long)
        next_offset: dict[tuple[int, int], int] = {}
        embeds, offsets, counts = [], [], []
        for (row, segment, _), members in groups.items():
            vision = torch.cat([images[i] for i in members])  # [n, D]
            offset = next_offset.get((row, segment), 0) if row >= 0 else 0
            end = offset + 1 + len(vision) + (self.config.voco_tokens if tokens is not None else 0)
            if row >= 0:
                next_offset[row, segment] = end
                starts[row, segment] = end
            embeds.append(vision)
            offsets.append(offset)
            counts.append(len(vision))
        if not groups:  # text only: a block that is nothing but the sink
            groups, embeds, offsets, counts = {(-1, 0, 0): []}, [sink[:0]], [0], [0]

        longest, k = max(counts), len(compression)
        padded = torch.stack(
            [torch.cat([sink, e, e.new_zeros(longest - len(e), e.shape[1]), compression]) for e in embeds]
        )  # [M, 1 + longest + k, D]
        count, offset = torch.tensor(counts)[:, None], torch.tensor(offsets)[:, None]
        place = torch.arange(1 + longest)
        positions = torch.cat([offset + place.minimum(count), offset + 1 + count + torch.arange(k)], dim=1)
        mask = torch.cat([place <= count, torch.ones(len(embeds), k, dtype=torch.bool)], dim=1)
        if tokens is not None:
            kept = (1 + longest + torch.arange(k)).expand(len(embeds), k)
            kept_mask = torch.ones_like(kept, dtype=torch.bool)
        else:
            kept = (1 + torch.arange(longest)).expand(len(embeds), longest)
            kept_mask = kept <= count
        where = torch.tensor([(row, segment) for row, segment, _ in groups])
        return Blocks(
            padded,
            mask.to(device),
            positions.to(device),
            kept.to(device),
            kept_mask.to(device),
            where[:, 0],
            where[:, 1],
            tokens is not None,
            starts.to(device),
        )

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
        cache = carried_cache(self.config.text_config.num_hidden_layers)
        self.decoder(
            inputs_embeds=blocks.embeds,
            attention_mask=blocks.mask.long(),
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
    ) -> Prefix:
        """Lay encoded K,V out by text row; of compressed blocks only the first `tokens` C tokens, all by default."""
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
        return gather_prefix(sink, kept, kept_mask, blocks.rows, blocks.segments, blocks.starts, hide, bias)

    # --- read ------------------------------------------------------------------------------------------------------

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
        if packed or prefix.bias is not None:
            attention_mask = self._explicit_mask(prefix, text_mask, segment_ids)
        else:
            attention_mask = torch.cat([prefix.valid.long(), text_mask.long()], dim=1)
        output = self.decoder(
            inputs_embeds=self.get_input_embeddings()(text_ids),
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=carried_cache(len(prefix.layers), prefix.layers),
            use_cache=True,
        )
        return output.last_hidden_state

    def _explicit_mask(self, prefix: Prefix, text_mask: Tensor, segment_ids: Tensor) -> Tensor:
        kind = self.config.text_config._attn_implementation
        if "sdpa" not in kind and "eager" not in kind:
            raise ValueError(
                f"packed rows and mass_bias need a mask of their own, which attention {kind!r} does not take; "
                "use attention: sdpa (or eager), or switch data.packing and voco.mass_bias off."
            )
        return read_mask(prefix, text_mask, segment_ids, self.dtype, boolean="sdpa" in kind)

    # --- the transformers interface --------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        voco_tokens: int | None = None,
        prefix_bias: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a prompt whose images are placeholders of `image_token_id`.

        Args:
            input_ids: [B, L]; n placeholders an image with full vision, k with `voco_tokens=k`.
            pixel_values: [tiles, 3, H, W] of all images of the batch in order; image_tiles: [M].
            voco_tokens: k, or None for full vision, where placeholders may stand anywhere.
            prefix_bias: [B, P] score bias of cached compression tokens; set by `generate`.
        """
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        if pixel_values is not None and voco_tokens is not None and not cached:
            hidden, past_key_values = (
                self._read_prompt(input_ids, attention_mask, pixel_values, image_tiles, voco_tokens),
                None,
            )
        else:
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
                if pixel_values is not None and not cached:
                    inputs_embeds = self._place_images(input_ids, inputs_embeds, pixel_values)
            if prefix_bias is not None:
                attention_mask = self._decoding_mask(attention_mask, prefix_bias, inputs_embeds)
            output = self.decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
            hidden, past_key_values = output.last_hidden_state, output.past_key_values
        logits = self.head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _place_images(self, input_ids: Tensor, embeds: Tensor, pixel_values: Tensor) -> Tensor:
        features = self.image_features(pixel_values).flatten(0, 1)  # [tiles * n, D]
        places = input_ids == self.config.image_token_id
        if int(places.sum()) != len(features):
            raise ValueError(
                f"the prompt has {int(places.sum())} image placeholders, the images {len(features)} vision tokens; "
                "build both with the model's own processor and the same voco_tokens."
            )
        return embeds.masked_scatter(places[..., None], features.to(embeds.dtype))

    def _read_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor,
        image_tiles: Tensor | None,
        tokens: int,
    ) -> Tensor:
        prompt = split_prompt(input_ids, attention_mask, self.config)
        prefix = self._prompt_prefix(prompt.image_counts, pixel_values, image_tiles, tokens)
        text = self.read(prefix, prompt.text_ids, prompt.text_mask)  # [B, T, D]
        hidden = text.new_zeros(*input_ids.shape, text.shape[-1])
        row, column = prompt.text_mask.nonzero(as_tuple=True)
        hidden[row, prompt.text_index[row, column]] = text[row, column]
        return hidden

    def _prompt_prefix(
        self, image_counts: list[int], pixel_values: Tensor, image_tiles: Tensor | None, tokens: int | None
    ) -> Prefix:
        features = self.image_features(pixel_values)  # [tiles, n, D]
        tiles = image_tiles.tolist() if image_tiles is not None else [1] * len(features)
        sizes = [count * features.shape[1] if tokens is None else tokens for count in tiles]
        rows = image_rows(image_counts, sizes)
        return self.prefix(self.blocks(features, tiles, rows, [0] * len(rows), len(image_counts), tokens))

    def _decoding_mask(self, attention_mask: Tensor, prefix_bias: Tensor, embeds: Tensor) -> Tensor:
        length, total = embeds.shape[1], attention_mask.shape[1]
        query = torch.arange(total - length, total, device=embeds.device)
        see = (torch.arange(total, device=embeds.device) <= query[:, None]) & attention_mask[
            :, None, :
        ].bool()  # [B, T, S]
        bias = nn.functional.pad(prefix_bias, (0, total - prefix_bias.shape[1]))[:, None, :].to(embeds.dtype)
        return torch.where(see, bias, torch.finfo(embeds.dtype).min)[:, None]

    @torch.no_grad()
    def compress(
        self, pixel_values: Tensor, tokens: int | None = None, image_tiles: Tensor | None = None, **_: Any
    ) -> VocoCache:
        """Read images once and keep only k tokens of each.

        Args:
            pixel_values: [tiles, 3, H, W]; image_tiles: [M], one tile an image by default.
            tokens: k, at most the model's K; K by default.

        Raises: ValueError where the model has no compression tokens or not so many.
        """
        tokens = self.config.voco_tokens if tokens is None else tokens
        features = self.image_features(pixel_values)
        tiles = image_tiles.tolist() if image_tiles is not None else [1] * len(features)
        rows = list(range(len(tiles)))
        sinks, kept = self.encode(self.blocks(features, tiles, rows, [0] * len(rows), len(rows), tokens))
        layers = [
            (torch.cat([sk, k], dim=2), torch.cat([sv, v], dim=2)) for (sk, sv), (k, v) in zip(sinks, kept, strict=True)
        ]
        counts = torch.tensor([count * features.shape[1] for count in tiles], device=features.device)
        return VocoCache(layers, counts, self.voco.mass_bias(tokens), {**self.voco_identity(), "tokens": str(tokens)})

    def voco_identity(self) -> dict[str, str]:
        """What a cache must agree with: a fingerprint of the weights (shapes and sampled values), of the processor, and
        the settings that shape a cache. It tells mistakes, not attacks."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        text = self.config.text_config
        rope = getattr(text, "rope_parameters", None)
        return {
            "model": digest.hexdigest()[:16],
            "processor": str(getattr(self.config, "processor_hash", "")),
            "most_tokens": str(self.config.voco_tokens),
            "dtype": str(self.dtype).removeprefix("torch."),
            "rope": json.dumps(rope, sort_keys=True, default=str),
            "preset": self.config.voco["preset"] if self.config.voco else "none",
        }

    def cache_prefix(self, cache: VocoCache, rows: list[int], batch: int) -> Prefix:
        """Lay cached images out by text row; an image that stands behind others has its keys rotated to its place."""
        offsets, starts = [], torch.ones(batch, 1, dtype=torch.long)
        for row, count in zip(rows, cache.image_tokens.tolist(), strict=True):
            offset = int(starts[row]) if offsets and row in rows[: len(offsets)] else 0
            offsets.append(offset)
            starts[row] = offset + 1 + count + self.config.voco_tokens
        layers = cache.layers
        if any(offsets):
            layers = [
                (k, v) for k, (_, v) in zip(moved_keys(self, [k for k, _ in layers], offsets), layers, strict=True)
            ]
        sink = [(k[0, :, :1], v[0, :, :1]) for k, v in cache.layers]
        kept = [(k[:, :, 1:], v[:, :, 1:]) for k, v in layers]
        kept_mask = torch.ones(len(rows), cache.tokens, dtype=torch.bool)
        hide = self.config.voco["preset"] == "faithful"
        device = cache.image_tokens.device
        return gather_prefix(
            sink,
            kept,
            kept_mask,
            torch.tensor(rows),
            torch.zeros(len(rows), dtype=torch.long),
            starts.to(device),
            hide,
            cache.bias,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        voco_tokens: int | None = None,
        voco_cache: VocoCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock `generate` (sampling, beams, batches, streaming) on a prompt with images.

        Images come as `pixel_values`, or as a `voco_cache`: one image for each image of the prompts in order, or a
        single image that every prompt asks about. Placeholders stand between the sink and the text, as the processor
        puts them. Returns what `GenerationMixin.generate` returns, the prompt first.
        """
        if pixel_values is None and voco_cache is None:
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        prompt = split_prompt(input_ids, attention_mask, self.config)
        if voco_cache is not None:
            voco_cache.require(self.voco_identity())
            sizes = [voco_cache.tokens] * (
                len(voco_cache) if len(voco_cache) > 1 else sum(map(bool, prompt.image_counts))
            )
            rows = image_rows(prompt.image_counts, sizes)
            cache = voco_cache if len(voco_cache) == len(rows) else voco_cache.select([0] * len(rows))
            prefix = self.cache_prefix(cache, rows, len(input_ids))
        else:
            prefix = self._prompt_prefix(prompt.image_counts, pixel_values, image_tiles, voco_tokens)

        # The prompt as the cache has it: prefix slots, then text padded on the left.
        slots = prefix.valid.shape[1]
        slot_ids = torch.full((len(input_ids), slots), self.config.image_token_id, device=input_ids.device)
        laid_out = torch.cat([slot_ids, prompt.text_ids], dim=1)
        mask = torch.cat([prefix.valid.long(), prompt.text_mask.long()], dim=1)
        text_positions = (prompt.text_mask.long().cumsum(1) - 1).clamp_min(0) + prefix.starts
        positions = torch.cat([torch.zeros_like(slot_ids), text_positions], dim=1)

        settings = kwargs.get("generation_config") or self.generation_config
        copies = max(
            kwargs.get("num_beams") or settings.num_beams or 1,
            kwargs.get("num_return_sequences") or settings.num_return_sequences or 1,
        )
        past = prefix.cache()
        if copies > 1:
            past.batch_repeat_interleave(copies)
        if "max_length" in kwargs:
            kwargs["max_new_tokens"] = kwargs.pop("max_length") - input_ids.shape[1]
        if prefix.bias is not None:
            kwargs["prefix_bias"] = prefix.bias.contiguous()
        output = super().generate(
            input_ids=laid_out, attention_mask=mask, position_ids=positions, past_key_values=past, **kwargs
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        original = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
        sequences = torch.cat([original, sequences[:, laid_out.shape[1] :]], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


__all__ = ["MmkdForConditionalGeneration"]
