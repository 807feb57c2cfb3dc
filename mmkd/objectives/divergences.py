"""Divergences of two distributions over tokens, each defined once.

Both sides are log-probabilities [n, V]; the result is [n], zero where they agree and never negative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q)."""
    # One block of [n, V] beside p, one more in backward: a fresh block costs a CPU more than what is written to it.
    return -(log_q - log_p).mul_(log_p.exp()).sum(-1)


def generalised_js(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (Agarwal et al. 2024).

    Divided by beta it tends to KL(p || q) as beta goes to 0, divided by 1 - beta to KL(q || p) as beta goes to 1.
    """
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def skewed_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(p || skew p + (1 - skew) q) (Ko et al. 2024): at most -log skew; tends to KL(p || q) as skew goes to 0."""
    return kl(log_p, _log_mixture(log_p, log_q, skew))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """1/2 sum |p - q|, between 0 and 1."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q), without leaving logs: a sum of probabilities underflows first."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
