"""VoCo compression: an image is encoded once with the language model, and only the K,V of a few tokens are kept.

VoCo-LLaMA (Ye et al., arXiv 2406.12275) trains this with a masked single pass. Here it is two ordinary causal passes:

    encode, one block per image:  [sink, V_1 .. V_n, C_1 .. C_K]      keep each layer's K,V of the C tokens
    read:                         text on the cache [sink, C_1 .. C_k of each image], k <= K

which equals the masked pass in values and gradients (tested), needs no mask of ours, and never meets the vision tokens
again. Positions: a block is 1 + n + K long and starts where the block before it ends, whatever k is read; so a smaller
k is a plain slice of a cache and nothing moves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


__all__ = ["CompressionTokens"]
