"""The head's gradient in bf16: as near to the exact one in many chunks as in one."""

from __future__ import annotations

import torch

from mmkd.objectives.chunked import forward_kl, sum_over_chunks

TOKENS, WIDTH, VOCABULARY = 1024, 32, 300


def head_gradient(dtype: torch.dtype, chunk: int, factor: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # States have a mean, as trained ones do, so that what chunks add has one direction.
    states, mean, other = (torch.randn(n, WIDTH, generator=generator) for n in (TOKENS, 1, TOKENS))
    weight, teacher = (0.1 * torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype) for _ in range(2))
    weight.requires_grad_()

    def function(logits):
        return forward_kl(logits).sum()[None], torch.zeros(0)

    losses, _ = sum_over_chunks(
        function,
        torch.zeros(TOKENS, dtype=torch.long),
        (states + mean).to(dtype),
        lambda hidden: hidden @ weight.T,
        other.to(dtype),
        lambda hidden: hidden @ teacher.T,
        chunk=chunk,
        head_weight=weight,
    )
    (losses[0] * factor / TOKENS).backward()
    assert weight.grad.dtype == dtype
    return weight.grad.double()


def test_its_rounding_does_not_grow_with_the_number_of_chunks():
    exact = head_gradient(torch.float64, TOKENS)
    one, many = (
        (head_gradient(torch.bfloat16, chunk) - exact).norm() / exact.norm() for chunk in (TOKENS, TOKENS // 64)
    )
    assert 0 < many < 1.3 * one


def test_the_factor_that_backward_brings_is_not_rounded():
    """161.5 / 128 lies between two numbers of bf16, and all of the gradient would be off by as much."""
    factor = 161.5 / 128
    plain, larger = (head_gradient(torch.bfloat16, 64, by) for by in (1.0, factor))
    share = float((plain * larger).sum() / plain.square().sum())
    assert abs(share - factor) < 1e-3
