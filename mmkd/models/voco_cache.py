"""Compressed images as a thing to keep: sliced, picked from, saved, loaded, checked against the model that reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "mmkd.voco/1"


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

    @staticmethod
    def join(caches: list[VocoCache]) -> VocoCache:
        """Caches of the same model and k as one, in this order. Raises ValueError where they are not of the same."""
        common = {name: value for name, value in caches[0].identity.items() if name != "image"}  # each file has its own
        for cache in caches[1:]:
            cache.require(common)
        layers = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))  # [M, Hkv, 1 + k, d]
            for layer in zip(*(cache.layers for cache in caches), strict=True)
        ]
        return replace(caches[0], layers=layers, image_tokens=torch.cat([cache.image_tokens for cache in caches]))

    def save(self, path: str) -> None:
        """Write one safetensors file with the identity record in its header."""
        tensors = {"image_tokens": self.image_tokens.contiguous()}
        for i, (k, v) in enumerate(self.layers):
            tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"] = k.contiguous(), v.contiguous()
        if self.bias is not None:
            tensors["bias"] = self.bias.contiguous()
        save_file(tensors, path, metadata={"format": FORMAT, "identity": json.dumps(self.identity, sort_keys=True)})

    @classmethod
    def load(cls, path: str, device: str = "cpu") -> VocoCache:
        """Read a file written by `save`; whether it fits a model is checked when it is read with one.

        Raises: ValueError if it is no such file.
        """
        try:
            with safe_open(path, framework="pt", device=device) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") == FORMAT:
                    names = set(file.keys())
                    count = max(1, sum(name.endswith(".keys") for name in names))
                    layers = [
                        (file.get_tensor(f"layers.{i}.keys"), file.get_tensor(f"layers.{i}.values"))
                        for i in range(count)
                    ]
                    bias = file.get_tensor("bias") if "bias" in names else None
                    return cls(layers, file.get_tensor("image_tokens"), bias, dict(json.loads(metadata["identity"])))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a VoCo cache, nor any whole safetensors file ({error}).") from error
        raise ValueError(f"{path} is not a VoCo cache (format {metadata.get('format')!r}, expected {FORMAT!r}).")

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


__all__ = ["VocoCache"]
