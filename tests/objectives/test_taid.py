"""TAID against its definition: the loss, and how t moves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax, softmax

from mmkd.errors import ConfigError, TrainingError
from mmkd.objectives import TAID, CrossEntropy, build
from mmkd.objectives.chunked import ChunkLogits
from mmkd.train.task import DistillTask
from tests.objectives.sides import D_S, D_T, N, Section, V, batch, close, gradients, outputs, random_targets, side


def taid(t=None, **options):
    objective = build(Section("taid", options))
    if t is not None:
        objective.t.fill_(t)
    return objective


def naive(zs, zt, t):  # [N, V]; the formula, nothing else
    p = softmax((1 - t) * zs.detach() + t * zt, -1)
    return -(p * log_softmax(zs, -1)).sum()


def naive_t(losses, steps, start=0.4, end=1.0, alpha=5e-4, beta=0.99):
    """t after each optimiser step, in plain numbers."""
    t, m, before, found = start, 0.0, None, []
    for step, loss in enumerate(losses, 1):
        if before is not None:
            m = beta * m + (1 - beta) * (before - loss) / (before + 1e-15)
            delta = alpha / (1 + 2.718281828459045**-m) * (1 - t)
            t = min(end, max(start + (end - start) * step / steps, t + delta))
        before = loss
        found.append(t)
    return found


def moved(objective, losses, steps):
    """t after each step of one micro batch whose tokens have these mean losses."""
    found = []
    for step, loss in enumerate(losses, 1):
        objective.summed(torch.tensor(loss * 10), 10)
        objective.step_finished(step / steps)
        found.append(float(objective.t))
    return found


@pytest.mark.parametrize("t", [0.4, 0.9])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_the_definition_in_value_and_gradient(dtype, chunk, t):
    (hs, fs), (ht, ft) = side(D_S, V, dtype), side(D_T, V, dtype, seed=1)
    objective = taid(t, chunk=chunk)
    found = objective(outputs(hs, fs), outputs(ht, ft), batch(random_targets())).loss
    h, w = (x.detach().double().requires_grad_() for x in (hs, fs.weight))
    expected = naive(h @ w.T, ht.detach().double() @ ft.weight.detach().double().T, float(objective.t))
    close([found], [expected], dtype)
    close(gradients(found, hs, fs.weight), gradients(expected, h, w), dtype)


@pytest.mark.parametrize("widths", [(V + 5, V), (V, V + 5), (V + 3, V + 5)])
def test_padded_vocabularies_are_mixed_on_the_ids_that_both_sides_have(widths):
    (hs, fs), (ht, ft) = side(D_S, widths[0]), side(D_T, widths[1], seed=1)
    objective = taid(0.5, chunk=7)
    found = objective(outputs(hs, fs, V), outputs(ht, ft, V), batch(random_targets())).loss
    expected = naive((hs @ fs.weight.T)[:, :V], (ht @ ft.weight.T).detach()[:, :V], 0.5)
    close([found], [expected], torch.float64)
    close(gradients(found, hs, fs.weight), gradients(expected, hs, fs.weight), torch.float64)


def test_logits_in_bf16_are_mixed_in_fp32():
    rough = [(3 * torch.randn(N, 5000)).bfloat16() for _ in range(2)]
    found, expected = (
        taid(0.7).token_loss(ChunkLogits(zs, zt, random_targets())) for zs, zt in (rough, [z.float() for z in rough])
    )
    close([found], [expected], torch.float32)


def test_at_t_1_it_has_the_gradient_of_forward_kl_and_equal_logits_give_none():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    sides = outputs(hs, fs), outputs(ht, ft), batch(random_targets())
    forward = build(Section("forward_kl"))(*sides).loss
    close(gradients(taid(1.0)(*sides).loss, hs, fs.weight), gradients(forward, hs, fs.weight), torch.float64)
    z = torch.randn(N, V, dtype=torch.float64, requires_grad=True)
    same = taid(0.6).token_loss(ChunkLogits(z, z.detach(), random_targets())).sum()
    assert gradients(same, z)[0].abs().max() < 1e-12


def test_a_batch_without_answers_gives_zero_and_leaves_t_alone():
    (hs, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    objective = taid()
    found = objective(outputs(hs, fs), outputs(ht, ft), batch(torch.zeros(0, dtype=torch.long)))
    found.loss.backward()
    objective.step_finished(0.5)
    assert found.loss == fs.weight.grad.abs().sum() == 0
    assert objective.t == torch.tensor(0.4)
    assert objective.before.isnan()


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.05, "momentum": 0.5}, {"t_start": 0.0, "t_end": 0.8, "alpha": 0.1}]
)
def test_t_moves_as_the_paper_says(options):
    torch.manual_seed(0)
    losses = (3 * torch.exp(-torch.arange(60) / 20) + 0.3 * torch.rand(60)).tolist()
    names = {"t_start": "start", "t_end": "end", "momentum": "beta"}
    expected = naive_t(losses, 60, **{names.get(key, key): value for key, value in options.items()})
    found = moved(taid(**options), losses, 60)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(options.get("t_end", 1.0))


def test_t_runs_ahead_of_the_line_where_the_loss_falls_and_alpha_0_is_the_line():
    falling, rising = [0.8**i for i in range(20)], [1.2**i for i in range(20)]
    quick, slow = (moved(taid(alpha=0.1, momentum=0.5), losses, 1000)[-1] for losses in (falling, rising))
    line = moved(taid(alpha=0.0), falling, 1000)[-1]
    assert quick > slow > line == pytest.approx(0.4 + 0.6 * 20 / 1000)


def train(objective, accumulation, steps=6):
    """t after each optimiser step of a student that learns, its batch in so many parts."""
    (_, fs), (_, ft) = side(D_S, V), side(D_T, V, seed=1)
    found = []
    for step in range(steps):
        (hs, _), (ht, _) = side(D_S, V, seed=2 * step), side(D_T, V, seed=2 * step + 1)
        y, fs.weight.grad = random_targets(), None
        for part in torch.arange(N).tensor_split(accumulation):  # parts of unequal size
            loss = objective(outputs(hs[part], fs), outputs(ht[part], ft), batch(y[part], N)).loss
            loss.backward()
        fs.weight.data -= fs.weight.grad
        objective.step_finished((step + 1) / 100)
        found.append(float(objective.t))
    return found


def test_t_is_the_same_whatever_the_accumulation_and_the_chunks():
    whole = train(taid(alpha=0.5, momentum=0.5), 1)
    assert len(set(whole)) == 6
    for accumulation, chunk in ((1, 5), (2, 512), (4, 512), (4, 2)):
        assert train(taid(alpha=0.5, momentum=0.5, chunk=chunk), accumulation) == pytest.approx(whole, abs=1e-6)


def test_the_report_shows_the_loss_and_t():
    (hs, fs), (ht, ft) = side(D_S, V), side(D_T, V, seed=1)
    report = taid(0.7)(outputs(hs, fs), outputs(ht, ft), batch(random_targets())).report
    assert report["taid_t"].mean == pytest.approx(0.7)
    assert report["taid"].mean == pytest.approx(naive(hs @ fs.weight.T, ht @ ft.weight.T, 0.7).item() / N)


class Nothing(nn.Module):
    """A student without parts, for the task around objectives."""

    class config:
        class text_config:
            num_hidden_layers = 1
            hidden_size = 4


def test_a_checkpoint_of_the_task_holds_t_and_a_resumed_run_moves_it_alike():
    def task():
        return DistillTask(Nothing(), [(CrossEntropy(), 1.0), (taid(alpha=0.5, momentum=0.5), 1.0)])  # type: ignore

    def step(task, i):
        task.objectives[1].summed(torch.tensor(10 * 0.9**i + i % 3), 10)
        task.step_finished(i / 100)
        return task.objectives[1].t.item()

    def go(task, steps):
        return [step(task, i) for i in steps]

    whole = go(task(), range(1, 9))
    stopped, resumed = task(), task()
    first = go(stopped, range(1, 5))
    state = copy.deepcopy(stopped.state_dict())
    assert set(state) == {f"objectives.1.{name}" for name in ("t", "mean_change", "before")}
    resumed.load_state_dict(state)
    assert first + go(resumed, range(5, 9)) == whole
    with pytest.raises(TrainingError, match="of another model"):
        task().load_state_dict({"objectives.1.t": torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t_start": 1.0}, "t_start=1.0, expected a number >= 0 and < 1"),
        ({"t_end": 1.5}, "t_end=1.5, expected a number > 0 and <= 1"),
        ({"t_start": 0.9, "t_end": 0.5}, "expected t_start < t_end"),
        ({"alpha": -1}, "alpha=-1, expected a number >= 0 and <= 1"),
        ({"momentum": 1}, "momentum=1, expected a number >= 0 and < 1"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(given, message):
    with pytest.raises(ConfigError, match=message):
        TAID(**given)
