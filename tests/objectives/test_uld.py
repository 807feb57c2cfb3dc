"""Universal logit distillation against its definition, in value and gradient."""

import pytest
import torch
from torch.nn.functional import softmax

from mmkd.objectives.uld import chunked_uld, sorted_distance
from tests.objectives.sides import D_S, D_T, N, V, close, gradients, side

WIDER = V + 17
STARTS = torch.tensor([0, 1, 4, 5, 9, 20]), torch.tensor([0, 3, 4, 7, 8, 22])


def naive(zs, zt):  # [S, V_s], [S, V_t]; the formula, nothing else
    total = 0
    for s, t in zip(softmax(zs, -1), softmax(zt, -1)):
        p, q = sorted(s, reverse=True), sorted(t, reverse=True)
        length = max(len(p), len(q))
        p, q = p + [0] * (length - len(p)), q + [0] * (length - len(q))
        total = total + sum(abs(a - b) for a, b in zip(p, q))
    return total


@pytest.mark.parametrize("widths", [(V, WIDER), (WIDER, V), (V, V)])
@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_the_definition_in_value_and_gradient(dtype, chunk, widths):
    (hs, fs), (ht, ft) = side(D_S, widths[0], dtype), side(D_T, widths[1], dtype, seed=1)
    found = chunked_uld(hs, fs, ht, ft, STARTS, chunk=chunk)
    h, w = (x.detach().double().requires_grad_() for x in (hs, fs.weight))
    zt = ht.detach().double() @ ft.weight.detach().double().T
    expected = naive((h @ w.T)[STARTS[0]], zt[STARTS[1]])
    close([found], [expected], dtype)
    close(gradients(found, hs, fs.weight), gradients(expected, h, w), dtype)


def test_rows_of_padding_count_on_neither_side():
    (hs, fs), (ht, ft) = side(D_S, V + 5), side(D_T, WIDER + 3, seed=1)
    found = chunked_uld(hs, fs, ht, ft, STARTS, (V, WIDER), chunk=4)
    expected = naive((hs @ fs.weight.T)[STARTS[0], :V], (ht @ ft.weight.T).detach()[STARTS[1], :WIDER])
    close([found], [expected], torch.float64)
    assert gradients(found, fs.weight)[0][V:].abs().sum() == 0


def test_it_does_not_depend_on_how_either_side_numbers_its_tokens():
    zs, zt = torch.randn(N, V), torch.randn(N, WIDER)
    there = sorted_distance(zs, zt)
    close([sorted_distance(zs[:, torch.randperm(V)], zt[:, torch.randperm(WIDER)])], [there], torch.float32)
    assert sorted_distance(zs, zs[:, torch.randperm(V)]).max() < 1e-6
    assert 0 < there.max() <= 2


def test_logits_in_bf16_are_compared_in_fp32():
    zs, zt = torch.randn(N, 3000).bfloat16(), torch.randn(N, 5000).bfloat16()
    found = sorted_distance(zs, zt)
    assert found.dtype == torch.float32
    close([found], [sorted_distance(zs.float(), zt.float())], torch.float32)


def test_a_batch_without_spans_gives_zero_and_no_gradient_reaches_the_teacher():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    none = torch.zeros(0, dtype=torch.long)
    nothing = chunked_uld(hs, fs, ht, ft, (none, none))
    nothing.backward()
    assert nothing == hs.grad.abs().sum() == fs.weight.grad.abs().sum() == 0
    chunked_uld(hs, fs, ht, ft, STARTS).backward()
    assert ht.grad is None
    assert ft.weight.grad is None
