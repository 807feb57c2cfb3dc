"""The vision-language model of mmkd: any vision tower, a projector, any decoder, and VoCo compression tokens.

Copied with its siblings into every release and loaded as remote code, so they import torch, transformers and each other
only. One idea a file, each standing on the one before: parts, two_pass, compression, generation; this file adds
transformers' `forward`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from .generation import GeneratingModel
from .prompt import split_prompt


class MmkdForConditionalGeneration(GeneratingModel):
    """A VLM that reads an image as its n vision tokens, or as k <= K compression tokens."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        tower_features: Tensor | None = None,
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
            position_ids: counted from the mask by default, so that padding on the left changes nothing.
            pixel_values: [tiles, 3, H, W] of all images of the batch in order; image_tiles: [M].
            tower_features: [tiles, N, D_v], what `vision_tower` made of those images, in their place.
            voco_tokens: k, or None for full vision, where placeholders may stand anywhere.
            prefix_bias: [B, P] score bias of cached compression tokens; set by `generate`.
        """
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        features = None
        if not cached and (pixel_values is not None or tower_features is not None):
            features = self.image_features(pixel_values, tower_features)  # [tiles, n, D]
        if features is not None and voco_tokens is not None:
            hidden = self._read_prompt(input_ids, attention_mask, features, image_tiles, voco_tokens)
            past_key_values = None
        else:
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
                if features is not None:
                    inputs_embeds = self._place_images(input_ids, inputs_embeds, features)
            if position_ids is None and attention_mask is not None and not cached:
                position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
            mask: Any = attention_mask
            if prefix_bias is not None:
                if attention_mask is None:  # `generate` drops a mask of ones
                    past = past_key_values.get_seq_length() if past_key_values is not None else 0
                    attention_mask = inputs_embeds.new_ones(len(inputs_embeds), past + inputs_embeds.shape[1])
                mask = self._decoding_mask(attention_mask, prefix_bias, inputs_embeds)
            output = self.decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
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

    def _place_images(self, input_ids: Tensor, embeds: Tensor, features: Tensor) -> Tensor:
        features = features.flatten(0, 1)  # [tiles * n, D]
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
        features: Tensor,
        image_tiles: Tensor | None,
        tokens: int,
    ) -> Tensor:
        prompt = split_prompt(input_ids, attention_mask, self.config)
        prefix = self._prompt_prefix(prompt.image_counts, features, image_tiles, tokens)
        text = self.read(prefix, prompt.text_ids, prompt.text_mask)  # [B, T, D]
        hidden = text.new_zeros(*input_ids.shape, text.shape[-1])
        row, column = prompt.text_mask.nonzero(as_tuple=True)
        hidden[row, prompt.text_index[row, column]] = text[row, column]
        return hidden


__all__ = ["MmkdForConditionalGeneration"]
