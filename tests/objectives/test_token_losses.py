"""Token losses against their definitions, in value and gradient, and what they cost."""

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax, softmax

from mmkd.errors import ConfigError
from mmkd.objectives import CrossEntropy, ForwardKL, Ratio, build, names, options, registry, token_losses
from mmkd.objectives.chunked import split_sizes
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


def naive_cross_entropy(zs, y):  # [N, V]; the formula, nothing else
    return -torch.log(softmax(zs, -1))[torch.arange(len(y)), y].sum()


def naive_forward_kl(zs, zt, t):
    p, log_q = softmax(zt / t, -1), log_softmax(zs / t, -1)
    return t * t * (p * (p.log() - log_q)).sum()


def forward_kl(hs, fs, ht, ft, vocabulary=None, **options):
    targets = torch.zeros(N, dtype=torch.long)
    return ForwardKL(**options)(outputs(hs, fs, vocabulary), outputs(ht, ft), batch(targets)).loss


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_equals_the_definition_in_value_and_gradient(chunk, dtype):
    hidden, head = side(D_S, V, dtype)
    y = random_targets()
    found = CrossEntropy(chunk=chunk)(outputs(hidden, head), None, batch(y)).loss
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact_h, exact_w = hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()
    expected = naive_cross_entropy(exact_h @ exact_w.T, y)
    close([found], [expected], dtype)
    close(gradients(found, hidden, head.weight), gradients(expected, exact_h, exact_w), dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_kl_equals_the_definition_in_value_and_gradient(chunk, dtype, temperature):
    hs, fs = side(D_S, V, dtype)
    ht, ft = side(D_T, V, dtype, seed=1)
    found = forward_kl(hs, fs, ht, ft, temperature=temperature, chunk=chunk)
    exact_h, exact_w = hs.detach().double().requires_grad_(), fs.weight.detach().double().requires_grad_()
    zt = ht.detach().double() @ ft.weight.detach().double().T
    expected = naive_forward_kl(exact_h @ exact_w.T, zt, temperature)
    close([found], [expected], dtype)
    close(gradients(found, hs, fs.weight), gradients(expected, exact_h, exact_w), dtype)


@pytest.mark.parametrize("widths", [(V + 5, V), (V, V + 5), (V + 3, V + 5)])
def test_padded_vocabularies_are_compared_on_the_ids_that_both_sides_have(widths):
    hs, fs = side(D_S, widths[0])
    ht, ft = side(D_T, widths[1], seed=1)
    found = forward_kl(hs, fs, ht, ft, temperature=2.0, chunk=7, vocabulary=V)
    expected = naive_forward_kl((hs @ fs.weight.T)[:, :V], (ht @ ft.weight.T).detach()[:, :V], 2.0)
    close([found], [expected], torch.float64)
    close(gradients(found, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)
    assert gradients(found, fs.weight)[0][V:].abs().sum() == 0


def test_the_value_of_padding_logits_does_not_matter():
    hs, fs = side(D_S, V + 5)
    ht, ft = side(D_T, V + 5, seed=1)
    before = forward_kl(hs, fs, ht, ft, vocabulary=V)
    with torch.no_grad():
        fs.weight[V:] = 9.0
        ft.weight[V:] = -9.0
    assert torch.equal(before, forward_kl(hs, fs, ht, ft, vocabulary=V))


def both(hs, fs, ht, ft, y, normalizer=1.0, chunk=512, calls=None, whole=False):
    """`whole`: the student's head is known by its weight, so that gradients are made ahead."""
    terms = [(CrossEntropy(chunk=chunk), 0.3), (ForwardKL(temperature=2.0, chunk=chunk), 1.7)]
    student = outputs(hs, fs)
    student.head_weight = fs.weight if whole else None
    return token_losses(terms, student, outputs(ht, ft), batch(y, normalizer, calls))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_the_fused_runner_equals_the_weighted_sum_of_the_definitions(chunk, whole):
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    found = both(hs, fs, ht, ft, y, normalizer=N, chunk=chunk, whole=whole).loss
    zs, zt = hs @ fs.weight.T, (ht @ ft.weight.T).detach()
    expected = (0.3 * naive_cross_entropy(zs, y) + 1.7 * naive_forward_kl(zs, zt, 2.0)) / N
    close([found], [expected], torch.float64)
    close(gradients(found, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)


def test_no_gradient_reaches_the_teacher():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    both(hs, fs, ht, ft, random_targets(), chunk=7).loss.backward()
    assert ht.grad is None
    assert ft.weight.grad is None


def test_two_halves_sum_to_the_whole():
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    whole = both(hs, fs, ht, ft, y, normalizer=N)
    halves = [both(hs[at], fs, ht[at], ft, y[at], normalizer=N) for at in (slice(0, 9), slice(9, N))]
    loss = halves[0].loss + halves[1].loss
    close([loss], [whole.loss], torch.float64)
    close(gradients(loss, hs, fs.weight), gradients(whole.loss, hs, fs.weight), torch.float64)
    for name, ratio in whole.report.items():
        summed = halves[0].report[name].plus(halves[1].report[name])
        assert summed.mean == pytest.approx(ratio.mean), name


@pytest.mark.parametrize("calls", [None, 3])
def test_a_batch_without_answers_gives_zero_and_still_runs_every_module_backward(calls):
    (_, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    source = nn.Linear(4, D_S, dtype=torch.float64)
    hidden = source(torch.ones(5, 4, dtype=torch.float64))[torch.zeros(5, dtype=torch.bool)]  # [0, D]
    ran = []
    fs.register_forward_hook(lambda *_: ran.append("student"))
    ft.register_forward_hook(lambda *_: ran.append("teacher"))
    losses = both(hidden, fs, ht, ft, torch.zeros(0, dtype=torch.long), calls=calls)
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert ran.count("student") == ran.count("teacher") == (2 * calls - 1 if calls else 1)  # all but one run again
    assert source.weight.grad.abs().sum() == 0
    assert fs.weight.grad.abs().sum() == 0
    assert all(ratio.total == 0 and ratio.count == 0 for ratio in losses.report.values())


def test_a_rank_without_answers_that_makes_gradients_ahead_has_gradients_of_zero():
    (hs, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    losses = both(hs, fs, ht, ft, torch.zeros(0, dtype=torch.long), calls=3, whole=True)
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert hs.grad.shape == (0, D_S)
    assert fs.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("tokens", [0, 1, 2, 23])
def test_ranks_with_different_numbers_of_answers_call_the_head_equally_often(tokens):
    calls = len(split_sizes(23, 7))
    (hs, fs), (ht, ft), y = side(D_S, V, tokens=tokens), side(D_T, V, seed=1, tokens=tokens), random_targets(V, tokens)
    counted = {"forward": 0, "backward": 0}

    def count(*_):
        counted[stage] += 1

    fs.register_forward_hook(count)
    stage = "forward"
    loss = both(hs, fs, ht, ft, y, chunk=7, calls=calls).loss
    stage = "backward"
    loss.backward()
    assert counted == {"forward": calls, "backward": calls - 1}
    if tokens:
        zs, zt = hs @ fs.weight.T, (ht @ ft.weight.T).detach()
        close([loss], [0.3 * naive_cross_entropy(zs, y) + 1.7 * naive_forward_kl(zs, zt, 2.0)], torch.float64)


def test_cross_entropy_and_kl_together_cost_one_head_pass_of_each_side():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    ran = []
    fs.register_forward_hook(lambda *_: ran.append("student"))
    ft.register_forward_hook(lambda *_: ran.append("teacher"))
    both(hs, fs, ht, ft, random_targets()).loss.backward()
    assert sorted(ran) == ["student", "teacher"]


def test_too_few_head_calls_are_refused_instead_of_growing_the_chunk():
    with pytest.raises(ValueError, match="need 4 head calls, 2 were given"):
        split_sizes(23, 7, calls=2)
    assert split_sizes(23, 7) == [6, 6, 6, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", ["nothing", "the states", "the head"])
def test_gradients_made_ahead_are_those_of_the_recomputed_pass_and_no_logits_are_made_twice(frozen, dtype):
    (hs, fs), (ht, ft), y = side(D_S, V, dtype), side(D_T, V, dtype, seed=1), random_targets()
    learns = {"the states": hs, "the head": fs.weight}
    learns.pop(frozen, hs).requires_grad_(frozen == "nothing")
    ran = []
    fs.register_forward_hook(lambda *_: ran.append("student"))
    found, expected = (both(hs, fs, ht, ft, y, normalizer=N, chunk=7, whole=whole) for whole in (True, False))
    ran.clear()
    got, wanted = (gradients(3.0 * losses.loss, *learns.values()) for losses in (found, expected))
    assert len(ran) == len(split_sizes(N, 7)) - 1  # of the recomputed pass alone
    close([found.loss, *got], [expected.loss, *wanted], dtype)
    assert {name: ratio.mean for name, ratio in found.report.items()} == pytest.approx(
        {name: ratio.mean for name, ratio in expected.report.items()}
    )


def test_without_gradients_nothing_is_made_ahead():
    (hs, fs), (ht, ft), y = side(D_S, V), side(D_T, V, seed=1), random_targets()
    with torch.no_grad():
        loss = both(hs, fs, ht, ft, y, chunk=7, whole=True).loss
    assert not loss.requires_grad
    close([loss], [both(hs, fs, ht, ft, y).loss], torch.float64)


def peak(tokens, chunk, whole=False):
    (hs, fs), (ht, ft) = side(D_S, 1009, tokens=tokens), side(D_T, 1009, seed=1, tokens=tokens)
    with LivePeak(1009) as mode:
        both(hs, fs, ht, ft, random_targets(1009, tokens), chunk=chunk, whole=whole).loss.backward()
    return mode.peak


@pytest.mark.parametrize("whole", [False, True])
def test_peak_memory_does_not_grow_with_the_number_of_tokens(whole):
    assert peak(256, 16, whole) <= peak(32, 16, whole)
    assert peak(256, 256, whole) > 8 * peak(256, 16, whole)  # the measure sees what is there


def test_the_report_counts_what_it_says():
    (hs, fs), (ht, ft), y = side(D_S, V + 5), side(D_T, V, seed=1), random_targets(V + 5)
    report = both(hs, fs, ht, ft, y, chunk=7).report
    zs, zt = (hs @ fs.weight.T).detach(), (ht @ ft.weight.T).detach()
    known = y < V
    assert report["ce"].mean == pytest.approx(naive_cross_entropy(zs, y).item() / N)
    assert report["kl"].mean == pytest.approx(naive_forward_kl(zs[:, :V], zt, 2.0).item() / N)
    assert report["teacher_nll"].count == known.sum() < N
    assert report["teacher_nll"].mean == pytest.approx(naive_cross_entropy(zt[known], y[known]).item() / known.sum())
    assert report["accuracy"].mean == pytest.approx((zs.argmax(-1) == y).double().mean().item())
    assert report["agree"].mean == pytest.approx((zs.argmax(-1) == zt.argmax(-1)).double().mean().item())


def test_two_objectives_of_one_kind_are_reported_apart():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    terms = [(ForwardKL(1.0), 1.0), (ForwardKL(3.0), 1.0)]
    report = token_losses(terms, outputs(hs, fs), outputs(ht, ft), batch(random_targets())).report
    assert report["kl"].total != report["kl_2"].total


def test_without_a_teacher_cross_entropy_reports_no_teacher_and_kl_refuses():
    hs, fs = side(D_S, V)
    assert set(CrossEntropy()(outputs(hs, fs), None, batch(random_targets())).report) == {"ce", "accuracy"}
    with pytest.raises(ValueError, match="forward_kl: the teacher's outputs are missing"):
        ForwardKL()(outputs(hs, fs), None, batch(random_targets()))


@pytest.mark.parametrize("whole", [False, True])
def test_under_autocast_the_softmax_stays_in_fp32(whole):
    (hs, fs), (ht, ft), y = side(D_S, V, torch.float32), side(D_T, V, torch.float32, seed=1), random_targets()
    with torch.autocast("cpu", torch.bfloat16):
        loss = both(hs, fs, ht, ft, y, normalizer=N, chunk=7, whole=whole).loss
    loss.backward()
    exact = both(hs, fs, ht, ft, y, normalizer=N).loss
    assert loss.dtype == torch.float32
    assert abs(loss - exact) / exact < 2e-2


def test_a_ratio_of_nothing_is_nan_and_not_an_error():
    empty = Ratio(torch.tensor(0.0), torch.tensor(0.0))
    assert empty.mean != empty.mean
    assert empty.plus(Ratio(torch.tensor(3.0), torch.tensor(2.0))).mean == 1.5


def test_objectives_are_listed_by_wildcard():
    assert {"cross_entropy", "forward_kl", "voco_attention"} <= set(names())
    assert "forward_kl" in names("*_kl")
    assert "cross_entropy" not in names("*_kl")
    assert set(options("forward_kl")) == {"temperature", "chunk", "kernel"}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("forward_lk", {}, "Did you mean forward_kl"),
        ("forward_kl", {"temperatur": 2.0}, "temperatur is not a field of forward_kl. Did you mean temperature?"),
        ("forward_kl", {"temperature": 0.0}, "temperature=0.0, expected a number > 0"),
        ("forward_kl", {"temperature": "hot"}, "temperature='hot', expected a number"),
        ("cross_entropy", {"chunk": 0}, "chunk=0, expected a whole number >= 1"),
        ("voco_attention", {"queries": "mine"}, "expected one of: own, teacher"),
    ],
)
def test_a_wrong_name_option_or_value_says_what_is_allowed(name, given, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        build(Section(name, given))


def test_build_gives_the_objective_with_its_options():
    objective = build(Section("forward_kl", {"temperature": 2, "chunk": 64}))
    assert isinstance(objective, ForwardKL)
    assert objective.temperature == 2.0
    assert objective.chunk == 64


def test_one_of_another_package_is_known_by_its_entry_point(root, tmp_path, monkeypatch):
    """That of the docs, word for word."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    (tmp_path / "ours-1.0.dist-info").mkdir()
    (tmp_path / "ours-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    (tmp_path / "ours-1.0.dist-info" / "entry_points.txt").write_text(
        "[mmkd.objectives]\nsquared_error = our_objectives\nnone = our_objectives\n"
    )
    code = (root / "docs/objectives.md").read_text().split("```python\n")[-1].split("```")[0]
    (tmp_path / "our_objectives.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = build(Section("squared_error", {"chunk": 5}))
    (hidden, head), (theirs, their_head) = side(D_S, V), side(D_T, V, seed=1)
    found = made(outputs(hidden, head), outputs(theirs, their_head), batch(random_targets())).loss
    expected = (softmax(their_head(theirs), -1) - softmax(head(hidden), -1)).square().sum()
    close([found, *gradients(found, hidden)], [expected, *gradients(expected, hidden)], torch.float32)
    with pytest.raises(ConfigError, match=r"none \(our_objectives\) registers no objective of that name; @register"):
        build(Section("none"))
    with pytest.raises(ConfigError, match="Did you mean squared_error"):
        build(Section("squared_eror"))
