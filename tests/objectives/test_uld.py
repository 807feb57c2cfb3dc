"""Universal logit distillation against its definitions, in value and gradient."""

import pytest
import torch
from torch.nn.functional import softmax

from mmkd.errors import ConfigError
from mmkd.objectives import ULD, ForwardKL, Spans, build
from mmkd.objectives.chunked import split_sizes
from mmkd.objectives.uld import chunked_uld, sorted_distance
from tests.objectives.sides import (
    D_S,
    D_T,
    LivePeak,
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

WIDER = V + 17
STARTS = torch.tensor([0, 1, 4, 5, 9, 20]), torch.tensor([0, 3, 4, 7, 8, 22])
MATCHED = torch.tensor([1, 0, 0, 1, 1, 0]).bool()
SHARED = torch.tensor([[0, 3, 7, 20, 40], [5, 3, 1, 39, 30]])
SPANS = Spans(*STARTS, MATCHED, SHARED)
UNMATCHED = Spans(*STARTS, torch.zeros_like(MATCHED), SHARED)


def naive(zs, zt):  # [S, V_s], [S, V_t]; the formula, nothing else
    total = 0
    for s, t in zip(softmax(zs, -1), softmax(zt, -1)):
        p, q = sorted(s, reverse=True), sorted(t, reverse=True)
        length = max(len(p), len(q))
        p, q = p + [0] * (length - len(p)), q + [0] * (length - len(q))
        total = total + sum(abs(a - b) for a, b in zip(p, q))
    return total


def naive_kl(zs, zt):  # [S, m], logits of the same tokens on both sides
    p, q = softmax(zt, -1), softmax(zs, -1)
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize("widths", [(V, WIDER), (WIDER, V), (V, V)])
@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_the_definition_in_value_and_gradient(dtype, chunk, widths):
    (hs, fs), (ht, ft) = side(D_S, widths[0], dtype), side(D_T, widths[1], dtype, seed=1)
    found, plain = chunked_uld(hs, fs, ht, ft, SPANS, chunk=chunk)
    assert torch.equal(found, plain)
    h, w = (x.detach().double().requires_grad_() for x in (hs, fs.weight))
    zt = (ht.detach().double() @ ft.weight.detach().double().T)[STARTS[1]]
    zs = (h @ w.T)[STARTS[0]]
    exact = naive_kl(zs[MATCHED][:, SHARED[0]], zt[MATCHED][:, SHARED[1]])
    expected = torch.stack([exact, naive(zs[~MATCHED], zt[~MATCHED])])
    close([found], [expected], dtype)
    for part in (0, 1):
        close(gradients(found[part], hs, fs.weight), gradients(expected[part], h, w), dtype)


@pytest.mark.parametrize("chunk", [3, 512])
def test_a_span_is_weighed_as_its_first_token_and_reported_as_it_is(chunk):
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    weights = torch.rand(N, dtype=torch.float64)
    found, plain = chunked_uld(hs, fs, ht, ft, SPANS, chunk=chunk, weights=weights)
    h, w = (x.detach().double().requires_grad_() for x in (hs, fs.weight))
    zt = (ht.detach().double() @ ft.weight.detach().double().T)[STARTS[1]]
    zs = (h @ w.T)[STARTS[0]]
    expected = torch.zeros(2, dtype=torch.float64)
    for place, weight in enumerate(weights[STARTS[0]]):
        one = slice(place, place + 1)
        if MATCHED[place]:
            expected[0] = expected[0] + weight * naive_kl(zs[one][:, SHARED[0]], zt[one][:, SHARED[1]])
        else:
            expected[1] = expected[1] + weight * naive(zs[one], zt[one])
    close([found], [expected], torch.float64)
    close(gradients(found.sum(), hs, fs.weight), gradients(expected.sum(), h, w), torch.float64)
    close([plain], [chunked_uld(hs, fs, ht, ft, SPANS)[0]], torch.float64)


def test_rows_of_padding_count_on_neither_side():
    (hs, fs), (ht, ft) = side(D_S, V + 5), side(D_T, WIDER + 3, seed=1)
    found = chunked_uld(hs, fs, ht, ft, UNMATCHED, (V, WIDER), chunk=4)[0].sum()
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
    nothing = chunked_uld(hs, fs, ht, ft, Spans(none, none, none.bool(), SHARED))[0].sum()
    nothing.backward()
    assert nothing == hs.grad.abs().sum() == fs.weight.grad.abs().sum() == 0
    chunked_uld(hs, fs, ht, ft, SPANS)[0].sum().backward()
    assert ht.grad is None
    assert ft.weight.grad is None


def test_tokenizers_that_share_no_token_are_compared_by_sorted_probabilities_alone():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    nothing = Spans(*STARTS, torch.zeros_like(MATCHED), torch.zeros(2, 0, dtype=torch.long))
    found, _ = chunked_uld(hs, fs, ht, ft, nothing)
    assert found[0] == 0
    assert torch.isfinite(gradients(found.sum(), hs)[0]).all()


def answers(spans, normalizer=1.0, calls=None):
    found = batch(random_targets(), normalizer, calls)
    found.spans = spans
    return found


def test_one_tokenizer_and_one_reading_give_forward_kl():
    (hs, fs), (ht, ft) = side(D_S, V + 3), side(D_T, V + 5, seed=1)
    every, ids = torch.arange(N), torch.arange(V)
    sides = outputs(hs, fs, V), outputs(ht, ft, V)
    found = ULD(chunk=4)(*sides, answers(Spans(every, every, torch.ones(N).bool(), torch.stack([ids, ids])), N)).loss
    expected = ForwardKL()(*sides, batch(random_targets(), N)).loss
    close([found], [expected], torch.float64)
    close(gradients(found, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)


def test_the_loss_is_divided_by_answer_tokens_and_halves_sum_to_the_whole():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    sides, objective = (outputs(hs, fs), outputs(ht, ft)), ULD(chunk=4)
    whole = objective(*sides, answers(SPANS, normalizer=N))
    halves = [
        objective(*sides, answers(Spans(*(x[at] for x in (*STARTS, MATCHED)), SHARED), normalizer=N))
        for at in (slice(0, 2), slice(2, 6))
    ]
    close([halves[0].loss + halves[1].loss], [whole.loss], torch.float64)
    close([whole.loss * N], [chunked_uld(hs, fs, ht, ft, SPANS)[0].sum()], torch.float64)
    for name in ("uld", "uld_kl", "uld_sorted"):
        assert halves[0].report[name].plus(halves[1].report[name]).mean == pytest.approx(whole.report[name].mean), name
    assert whole.report["uld_spans"].mean == pytest.approx(6 / N)
    assert whole.report["uld_kl"].count == 3


def test_the_papers_own_form_sorts_at_matched_spans_too():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    found = build(Section("uld", {"matched": "sorted"}))(outputs(hs, fs), outputs(ht, ft), answers(SPANS))
    expected = naive((hs @ fs.weight.T)[STARTS[0]], (ht @ ft.weight.T).detach()[STARTS[1]])
    close([found.loss], [expected], torch.float64)
    with pytest.raises(ConfigError, match="expected one of: forward_kl, sorted"):
        build(Section("uld", {"matched": "js"}))


@pytest.mark.parametrize("spans", [0, 1, 6])
def test_ranks_with_different_numbers_of_spans_call_the_head_equally_often(spans):
    calls = len(split_sizes(N, 4))
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    ran = []
    fs.register_forward_hook(lambda *_: ran.append(1))
    some = Spans(*(x[:spans] for x in (*STARTS, MATCHED)), SHARED)
    ULD(chunk=4)(outputs(hs, fs), outputs(ht, ft), answers(some, calls=calls)).loss.backward()
    assert len(ran) == 2 * calls - 1


def test_peak_memory_does_not_grow_with_the_number_of_spans():
    def peak(tokens, chunk):
        (hs, fs), (ht, ft) = side(D_S, 1009, tokens=tokens), side(D_T, 1009, seed=1, tokens=tokens)
        every, ids = torch.arange(tokens), torch.arange(1009)
        spans = Spans(every, every, every % 2 == 0, torch.stack([ids, ids.flip(0)]))
        with LivePeak(1009) as mode:
            chunked_uld(hs, fs, ht, ft, spans, chunk=chunk)[0].sum().backward()
        return mode.peak

    assert peak(256, 16) <= peak(32, 16)
    assert peak(256, 256) > 8 * peak(256, 16)  # the measure sees what is there


def test_without_spans_of_the_answers_it_says_what_is_missing():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, WIDER, seed=1)
    with pytest.raises(ValueError, match="spans of the answers"):
        ULD()(outputs(hs, fs), outputs(ht, ft), batch(random_targets()))
