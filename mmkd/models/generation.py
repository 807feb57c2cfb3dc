"""From a prompt with image placeholders to an answer: stock `generate` on what the images were encoded to."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from .compression import CompressingModel
from .prefix import Prefix
from .prompt import image_rows, split_prompt
from .voco_cache import VocoCache

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


class GeneratingModel(CompressingModel, GenerationMixin):
    """Adds `generate`."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        tower_features: Tensor | None = None,
        voco_tokens: int | None = None,
        voco_cache: VocoCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock `generate` (sampling, beams, batches, streaming) on a prompt with images.

        Args:
            input_ids, attention_mask: [B, L]; placeholders stand between the sink and the text, as the processor puts
                them.
            pixel_values: [tiles, 3, H, W] of all images in the order of the prompts; image_tiles: [M], one tile an
                image by default.
            tower_features: [tiles, N, D_v], what `vision_tower` made of those images, in their place.
            voco_tokens: k, or None for full vision.
            voco_cache: compressed images in place of all these: one for each image of the prompts in order, or a
                single one that every prompt asks about.

        Returns: what `GenerationMixin.generate` returns, the prompt first.

        Raises: ValueError where prompts and images do not fit, a cache is not of this model, or decoding is assisted.
        """
        if pixel_values is None and tower_features is None and voco_cache is None:
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        # What is not given with the call is taken from the settings given, then from the model's own.
        given = [kwargs, *(s.to_dict() for s in (kwargs.get("generation_config"), self.generation_config) if s)]
        if assisted := [name for name in ASSISTED if any(settings.get(name) for settings in given)]:
            raise ValueError(f"{assisted[0]}: assisted decoding does not read images; leave it out, or set it to None.")
        prompt = split_prompt(input_ids, attention_mask, self.config)
        if voco_cache is not None:
            if not any(prompt.image_counts):
                raise ValueError("voco_cache was given, but no prompt names an image.")
            voco_cache.require(self.voco_identity())
            sizes = [voco_cache.tokens] * (
                len(voco_cache) if len(voco_cache) > 1 else sum(map(bool, prompt.image_counts))
            )
            rows = image_rows(prompt.image_counts, sizes)
            cache = voco_cache if len(voco_cache) == len(rows) else voco_cache.select([0] * len(rows))
            prefix = self.cache_prefix(cache, rows, len(input_ids))
        else:
            features = self.image_features(pixel_values, tower_features)
            prefix = self._prompt_prefix(prompt.image_counts, features, image_tiles, voco_tokens)

        # The prompt as the cache has it: prefix slots, then text padded on the left.
        slots = prefix.valid.shape[1]
        slot_ids = torch.full((len(input_ids), slots), self.config.image_token_id, device=input_ids.device)
        laid_out = torch.cat([slot_ids, prompt.text_ids], dim=1)
        mask = torch.cat([prefix.valid.long(), prompt.text_mask.long()], dim=1)
        text_positions = (prompt.text_mask.long().cumsum(1) - 1).clamp_min(0) + prefix.starts
        positions = torch.cat([torch.zeros_like(slot_ids), text_positions], dim=1)

        copies = max(next((g[n] for g in given if g.get(n)), 1) for n in ("num_beams", "num_return_sequences"))
        past = prefix.cache()
        if copies > 1:
            past.batch_repeat_interleave(copies)
        if "max_length" in kwargs:
            kwargs["max_new_tokens"] = kwargs.pop("max_length") - input_ids.shape[1]
        kwargs["use_cache"] = True  # it holds the images; a decoder's own settings may say False
        bias = prefix.bias
        most_new = next((g["max_new_tokens"] for g in given if g.get("max_new_tokens")), sys.maxsize)
        if bias is None and self._counts_padding(mask, mask.shape[1] + most_new):
            bias = torch.zeros(prefix.valid.shape, dtype=self.dtype, device=mask.device)  # for masks of our own
        if bias is not None:
            kwargs["prefix_bias"] = bias.contiguous()
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

    def _prompt_prefix(
        self, image_counts: list[int], features: Tensor, image_tiles: Tensor | None, tokens: int | None
    ) -> Prefix:
        tiles = image_tiles.tolist() if image_tiles is not None else [1] * len(features)
        sizes = [count * features.shape[1] if tokens is None else tokens for count in tiles]
        rows = image_rows(image_counts, sizes)
        return self.prefix(self.blocks(features, tiles, rows, [0] * len(rows), len(image_counts), tokens))

    def _decoding_mask(self, attention_mask: Tensor, prefix_bias: Tensor, embeds: Tensor) -> Tensor | dict[str, Tensor]:
        length, total = embeds.shape[1], attention_mask.shape[1]
        query = torch.arange(total - length, total, device=embeds.device)
        see = (torch.arange(total, device=embeds.device) <= query[:, None]) & attention_mask[
            :, None
        ].bool()  # [B, T, S]
        see = see | (torch.arange(total, device=embeds.device) == query[:, None])  # padding sees itself: no NaN
        return self._own_masks(see[:, None], prefix_bias)


__all__ = ["GeneratingModel"]
