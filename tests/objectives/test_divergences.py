"""Divergences between both sides' logits against their definitions, in value and gradient."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

from mmkd.errors import ConfigError
from mmkd.objectives import CrossEntropy, build, token_losses
from mmkd.objectives.chunked import ChunkLogits
from tests.objectives.sides import (
    D_S,
    D_T,
    TOLERANCE,
    N,
    Section,
    V,
    batch,
    close,
    gradients,
    outputs,
    random_targets,
    side,
)


def kl(p, q):  # [N, V] probabilities; the formula, nothing else
    return (p * (p / q).log()).sum()


def js(p, q, beta):
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


# (name, options) -> naive(p teacher, q student), and the power of T that scales it
CASES = {
    "forward_kl": ({}, kl, 2),
    "reverse_kl": ({}, lambda p, q: kl(q, p), 2),
    "generalised_js": ({}, lambda p, q: js(p, q, 0.5), 2),
    "generalised_js 0.1": ({"beta": 0.1}, lambda p, q: js(p, q, 0.1), 2),
    "generalised_js 0.9": ({"beta": 0.9}, lambda p, q: js(p, q, 0.9), 2),
    "skewed_kl": ({}, lambda p, q: kl(p, 0.1 * p + 0.9 * q), 2),
    "skewed_kl 0.6": ({"skew": 0.6}, lambda p, q: kl(p, 0.6 * p + 0.4 * q), 2),
    "skewed_kl reverse": ({"direction": "reverse"}, lambda p, q: kl(q, 0.1 * q + 0.9 * p), 2),
    "total_variation": ({}, lambda p, q: 0.5 * (p - q).abs().sum(), 1),
}
every_divergence = pytest.mark.parametrize("case", CASES)


def objective(case, **more):
    return build(Section(case.split()[0], CASES[case][0] | more))


def naive(case, zs, zt, t):
    _, function, power = CASES[case]
    return t**power * function(softmax(zt / t, -1), softmax(zs / t, -1))


def exact(hidden, head):
    return hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_divergence
def test_it_equals_the_definition_in_value_and_gradient(case, dtype, chunk, temperature):
    (hs, fs), (ht, ft) = side(D_S, V, dtype), side(D_T, V, dtype, seed=1)
    loss = objective(case, temperature=temperature, chunk=chunk)
    found = loss(outputs(hs, fs), outputs(ht, ft), batch(random_targets()))
    h, w = exact(hs, fs)
    expected = naive(case, h @ w.T, ht.detach().double() @ ft.weight.detach().double().T, temperature)
    close([found.loss], [expected], dtype)
    close(gradients(found.loss, hs, fs.weight), gradients(expected, h, w), dtype)
    assert found.report[loss.label].mean == pytest.approx(expected.item() / N, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every_divergence
def test_logits_in_bf16_are_compared_in_fp32(case, temperature):
    torch.manual_seed(0)
    rough = [(3 * torch.randn(N, 5000)).bfloat16().requires_grad_() for _ in range(2)]
    fine = [z.detach().float().requires_grad_() for z in rough]
    loss = objective(case, temperature=temperature)
    found, expected = (loss.token_loss(ChunkLogits(zs, zt.detach(), random_targets())) for zs, zt in (rough, fine))
    assert found.dtype == torch.float32
    close([found], [expected], torch.float32)
    close(gradients(found.sum(), rough[0]), gradients(expected.sum(), fine[0]), torch.bfloat16)


@pytest.mark.parametrize("widths", [(V + 5, V), (V, V + 5), (V + 3, V + 5)])
@every_divergence
def test_padded_vocabularies_are_compared_on_the_ids_that_both_sides_have(case, widths):
    (hs, fs), (ht, ft) = side(D_S, widths[0]), side(D_T, widths[1], seed=1)
    sides = outputs(hs, fs, V), outputs(ht, ft, V)
    found = objective(case, temperature=2.0, chunk=7)(*sides, batch(random_targets())).loss
    expected = naive(case, (hs @ fs.weight.T)[:, :V], (ht @ ft.weight.T).detach()[:, :V], 2.0)
    close([found], [expected], torch.float64)
    close(gradients(found, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)
    assert gradients(found, fs.weight)[0][V:].abs().sum() == 0


@pytest.mark.parametrize("calls", [None, 3])
@every_divergence
def test_a_batch_without_answers_gives_zero_and_still_runs_every_module_backward(case, calls):
    (_, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    source = nn.Linear(4, D_S, dtype=torch.float64)
    hidden = source(torch.ones(5, 4, dtype=torch.float64))[torch.zeros(5, dtype=torch.bool)]  # [0, D]
    nothing = batch(torch.zeros(0, dtype=torch.long), calls=calls)
    losses = objective(case)(outputs(hidden, fs), outputs(ht, ft), nothing)
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert source.weight.grad.abs().sum() == fs.weight.grad.abs().sum() == 0


@every_divergence
def test_it_is_zero_with_a_gradient_of_zero_where_both_sides_agree(case):
    z = torch.randn(N, V, dtype=torch.float64, requires_grad=True)
    found = objective(case, temperature=2.0).token_loss(ChunkLogits(z, z.detach(), random_targets()))
    assert found.abs().max() < 1e-12
    assert gradients(found.sum(), z)[0].abs().max() < 1e-12


@every_divergence
def test_sides_that_share_no_token_give_finite_values_and_gradients(case):
    z = torch.full((2, V), -200.0)
    zs, zt = z.clone(), z.clone()
    zs[:, 0], zt[:, 1] = 200.0, 200.0
    zs.requires_grad_()
    found = objective(case).token_loss(ChunkLogits(zs, zt, torch.zeros(2, dtype=torch.long))).sum()
    assert torch.isfinite(found)
    assert torch.isfinite(gradients(found, zs)[0]).all()


def value_and_gradient(name, given, scale=1.0):
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    loss = build(Section(name, {"temperature": 2.0, **given}))(
        outputs(hs, fs), outputs(ht, ft), batch(random_targets())
    )
    return [scale * loss.loss, *(scale * g for g in gradients(loss.loss, hs, fs.weight))]


@pytest.mark.parametrize(
    ("name", "given", "scale", "limit"),
    [
        ("generalised_js", {"beta": 1e-7}, 1e7, "forward_kl"),
        ("generalised_js", {"beta": 1 - 1e-7}, 1e7, "reverse_kl"),
        ("skewed_kl", {"skew": 1e-12}, 1.0, "forward_kl"),
        ("skewed_kl", {"skew": 1e-12, "direction": "reverse"}, 1.0, "reverse_kl"),
    ],
)
def test_at_its_limit_it_is_forward_or_reverse_kl(name, given, scale, limit):
    for at_limit, plain in zip(value_and_gradient(name, given, scale), value_and_gradient(limit, {}), strict=True):
        torch.testing.assert_close(at_limit, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


def test_half_js_is_symmetric_and_the_skewed_kl_is_bounded():
    z = 100 * torch.randn(2, N, V, dtype=torch.float64)
    there, back = (ChunkLogits(a, b, random_targets()) for a, b in (z, z.flip(0)))
    js_loss, skewed = objective("generalised_js"), objective("skewed_kl")
    close([js_loss.token_loss(there)], [js_loss.token_loss(back)], torch.float64)
    assert js_loss.token_loss(there).max() <= math.log(2) + 1e-9
    assert 1 < skewed.token_loss(there).max() <= -math.log(0.1) + 1e-9
    assert objective("total_variation").token_loss(there).max() <= 1 + 1e-9


def test_all_of_them_together_cost_one_head_pass_of_each_side():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    ran = []
    fs.register_forward_hook(lambda *_: ran.append("student"))
    ft.register_forward_hook(lambda *_: ran.append("teacher"))
    terms = [(CrossEntropy(), 1.0), *((objective(case), 0.5) for case in CASES)]
    found = token_losses(terms, outputs(hs, fs), outputs(ht, ft), batch(random_targets()))
    assert sorted(ran) == ["student", "teacher"]
    zs, zt = hs @ fs.weight.T, (ht @ ft.weight.T).detach()
    expected = sum(0.5 * naive(case, zs, zt, 1.0) for case in CASES) + found.report["ce"].total
    close([found.loss], [expected], torch.float64)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("generalised_js", {"beta": 0.0}, "generalised_js: beta=0.0, expected a number > 0 and < 1."),
        ("generalised_js", {"beta": 1}, "generalised_js: beta=1, expected a number > 0 and < 1."),
        ("skewed_kl", {"skew": 1.5}, "skewed_kl: skew=1.5, expected a number > 0 and < 1."),
        ("skewed_kl", {"direction": "backward"}, "expected one of: forward, reverse."),
        ("reverse_kl", {"temperature": -1}, "reverse_kl: temperature=-1, expected a number > 0."),
        ("total_variation", {"temp": 1}, "temp is not a field of total_variation."),
    ],
)
def test_a_wrong_option_or_value_says_what_is_allowed(name, given, message):
    with pytest.raises(ConfigError) as caught:
        build(Section(name, given))
    assert message in str(caught.value)
