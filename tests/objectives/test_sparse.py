"""Forward KL on what a cache keeps of a teacher, against its definition, in value and gradient."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import softmax

from mmkd.objectives import CrossEntropy, ForwardKL, SparseTargets, token_losses
from mmkd.objectives.chunked import ChunkLogits
from tests.objectives.sides import D_S, D_T, N, V, batch, close, gradients, outputs, random_targets, side


def top_k(zt, k, t=1.0, vocabulary=V):
    """Of logits [N, V], by sorting; the formula, nothing else."""
    p = softmax(zt[:, :vocabulary] / t, -1)
    order = p.argsort(-1, descending=True)
    ids, others = order[:, :k], order[:, k:]
    mass = p.gather(1, others).sum(-1)
    tail = torch.where(mass > 0, mass.log(), torch.full_like(mass, -65504.0))
    kept = p.gather(1, ids)
    answers = softmax(zt[:, :vocabulary], -1)[torch.arange(len(zt)), random_targets()[: len(zt)]].log()
    return SparseTargets(ids, kept.log(), kept, tail, answers, order[:, 0], vocabulary)


def naive(zs, zt, k, t):
    """KL between both sides' k + 1 buckets: the teacher's k likeliest ids, and all others."""
    p, q = softmax(zt / t, -1), softmax(zs / t, -1)
    total = zs.new_zeros(())
    for row in range(len(zs)):
        ids = set(p[row].argsort(descending=True)[:k].tolist())
        others = [i for i in range(p.shape[1]) if i not in ids]
        for i in ids:
            total = total + p[row, i] * (p[row, i] / q[row, i]).log()
        if others:
            total = total + p[row, others].sum() * (p[row, others].sum() / q[row, others].sum()).log()
    return t * t * total


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("k", [1, 5, V - 1, V])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_top_k_and_its_tail_equal_the_definition_in_value_and_gradient(dtype, k, chunk, temperature):
    (hs, fs), (ht, ft) = side(D_S, V, dtype), side(D_T, V, seed=1)
    zt = (ht @ ft.weight.T).detach()
    teacher = top_k(zt, k, temperature)
    for name in ("log_probs", "weights", "tail"):
        setattr(teacher, name, getattr(teacher, name).to(dtype))
    found = ForwardKL(temperature, chunk)(outputs(hs, fs), teacher, batch(random_targets())).loss
    h, w = (x.detach().double().requires_grad_() for x in (hs, fs.weight))
    expected = naive(h @ w.T, zt, k, temperature)
    close([found], [expected], dtype)
    close(gradients(found, hs, fs.weight), gradients(expected, h, w), dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("widths", [(V, V), (V + 5, V), (V, V + 5), (V + 3, V + 5)])
def test_with_the_whole_vocabulary_it_is_the_live_teachers_and_so_are_the_reported_numbers(widths, temperature):
    (hs, fs), (ht, ft) = side(D_S, widths[0]), side(D_T, widths[1], seed=1)
    terms = [(CrossEntropy(7), 0.5), (ForwardKL(temperature, 7), 1.5)]
    answers = batch(random_targets(), normalizer=3.0)
    live = token_losses(terms, outputs(hs, fs, V), outputs(ht, ft, V), answers)
    cached = token_losses(terms, outputs(hs, fs, V), top_k((ht @ ft.weight.T).detach(), V, temperature), answers)
    close([cached.loss], [live.loss], torch.float64)
    close(gradients(cached.loss, hs, fs.weight), gradients(live.loss, hs, fs.weight), torch.float64)
    assert cached.report.keys() == live.report.keys()
    for name, ratio in live.report.items():
        assert cached.report[name].mean == pytest.approx(ratio.mean), name


def test_fewer_ids_never_give_more_and_come_near_the_whole():
    zs, zt = (3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).unbind()
    values = [ForwardKL().token_loss(ChunkLogits(zs, top_k(zt, k), random_targets())) for k in (1, 4, 16, V - 1, V)]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-12).all()
    assert values[0].min() >= 0
    assert values[0].sum() < 0.9 * values[-1].sum()


def test_a_student_that_is_sure_of_the_kept_ids_gets_a_finite_loss_and_gradient():
    """1 - sum of the kept ids is 0 in fp32 there: the tail has to be summed from what was not kept."""
    zs = torch.zeros(1, V)
    zs[0, 3] = 60.0
    zs.requires_grad_()
    zt = torch.zeros(1, V)
    zt[0, 3] = 1.0
    loss = ForwardKL().token_loss(ChunkLogits(zs, top_k(zt, 1), torch.tensor([3])))
    p = softmax(zt.double(), -1)
    expected = p[0, 3] * p[0, 3].log() + (1 - p[0, 3]) * ((1 - p[0, 3]).log() + 60 - torch.tensor(V - 1.0).log())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(gradients(loss.sum(), zs)[0]).all()
    assert gradients(loss.sum(), zs)[0][0, 3] == pytest.approx(1 - p[0, 3].item(), rel=1e-5)  # q - p


def sampled(zt, ids, q):
    """One draw for each row, at ids [N] from q."""
    p = softmax(zt, -1)
    chosen, drawn_from = p.gather(1, ids[:, None]), q.gather(1, ids[:, None])
    zeros = torch.zeros(len(zt), dtype=torch.float64)
    return SparseTargets(ids[:, None], chosen.log(), chosen / drawn_from, None, zeros, p.argmax(-1), V)


@pytest.mark.parametrize("proposal", [1.0, 0.6])
def test_the_mean_over_all_that_may_be_drawn_is_the_whole_kl_in_value_and_gradient(proposal):
    (hs, fs), (ht, ft) = side(D_S, V, tokens=5), side(D_T, V, seed=1, tokens=5)
    zt = (ht @ ft.weight.T).detach()
    q = softmax(proposal * zt, -1)
    targets = random_targets(tokens=5)
    expected = ForwardKL()(outputs(hs, fs), outputs(ht, ft), batch(targets)).loss
    mean = torch.zeros((), dtype=torch.float64)
    for i in range(V):
        ids = torch.full((5,), i)
        teacher = sampled(zt, ids, q)
        teacher.weights = teacher.weights * q[:, i : i + 1]  # times the chance to draw it
        mean = mean + ForwardKL(chunk=2)(outputs(hs, fs), teacher, batch(targets)).loss
    close([mean], [expected], torch.float64)
    close(gradients(mean, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)


@pytest.mark.parametrize("calls", [None, 3])
def test_a_rank_without_answers_runs_the_head_as_often_as_the_others(calls):
    (_, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    source = torch.nn.Linear(4, D_S, dtype=torch.float64)
    hidden = source(torch.ones(5, 4, dtype=torch.float64))[torch.zeros(5, dtype=torch.bool)]  # [0, D]
    teacher = top_k((ht @ ft.weight.T).detach(), 3)
    losses = ForwardKL()(outputs(hidden, fs), teacher, batch(torch.zeros(0, dtype=torch.long), calls=calls))
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert source.weight.grad.abs().sum() == fs.weight.grad.abs().sum() == 0
