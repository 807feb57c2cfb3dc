"""Distillation of hidden states against its definitions, row by row."""

import pytest
import torch

from mmkd.errors import ConfigError
from mmkd.objectives import AnswerBatch, HiddenStates, Outputs

N, D_S, D_T = 5, 6, 8
NONE = torch.zeros(1, 0, dtype=torch.bool)
PAIRS = [(0, 1), (1, 3), (2, 4)]  # three student layers under five of the teacher: the same share of the depth


def side(width, layers, seed, dtype=torch.float64, tokens=N):
    generator = torch.Generator().manual_seed(seed)
    hidden = {
        layer: torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for layer in range(layers)
    }
    return Outputs(torch.zeros(tokens, width), lambda h: h, {}, NONE, NONE, NONE.long(), hidden=hidden)


def batch(tokens=N, normalizer=1.0):
    zeros = torch.zeros(tokens, dtype=torch.long)
    return AnswerBatch(zeros, zeros, zeros, torch.ones(1, 1).bool(), torch.zeros(1, 1).long(), normalizer)


def objective(students=3, teachers=5, widths=(D_S, D_T), **options):
    torch.manual_seed(7)
    made = HiddenStates(**options)
    made.needs(students, teachers)
    made.make_heads(*widths)
    return made.double()


def naive(distance, s, t, tau):  # one row's own state s [D], all rows' teacher states t [N, D] with its own first
    def cos(a, b):
        return (a @ b) / (a.norm() * b.norm())

    if distance == "mse":
        return sum((a - b) ** 2 for a, b in zip(s, t[0], strict=True)) / sum(b**2 for b in t[0])
    if distance == "cosine":
        return 1 - cos(s, t[0])
    chances = torch.stack([torch.exp(cos(s, other) / tau) for other in t])
    return -torch.log(chances[0] / chances.sum())


def expected_loss(made, student, teacher, tau=0.1):
    total = 0.0
    for s, t in made.pairs:
        states, theirs = student.hidden[s], teacher.hidden[t].detach()
        if str(s) in made.heads:
            states = states @ made.heads[str(s)].weight.T
        for n in range(len(states)):
            order = [n] + [other for other in range(len(states)) if other != n]
            total = total + naive(made.distance, states[n], theirs[order], tau) / len(made.pairs)
    return total


@pytest.mark.parametrize("distance", ["mse", "cosine", "infonce"])
@pytest.mark.parametrize("widths", [(D_S, D_T), (D_T, D_T)])
def test_value_and_gradient_equal_the_definition_between_unequal_depths_and_widths(distance, widths):
    made = objective(distance=distance, widths=widths)
    assert made.pairs == PAIRS
    assert len(made.heads) == (3 if widths[0] != widths[1] else 0)
    student, teacher = side(widths[0], 3, 1), side(widths[1], 5, 2)
    found = made(student, teacher, batch(normalizer=N)).loss
    expected = expected_loss(made, student, teacher) / N
    torch.testing.assert_close(found, expected)
    learned = [*student.hidden.values(), *made.parameters()]
    torch.testing.assert_close(torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned))


@pytest.mark.parametrize("distance", ["mse", "cosine", "infonce"])
def test_fp32_is_exact_and_bf16_near(distance):
    made, exact = objective(distance=distance), None
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        made = made.to(dtype)
        loss = made(side(D_S, 3, 1, dtype), side(D_T, 5, 2, dtype), batch()).loss
        exact = loss if exact is None else exact
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_state_a_thousand_times_as_large_counts_as_one_of_the_usual_size(distance):
    made = objective(distance=distance)
    student, teacher = side(D_S, 3, 1), side(D_T, 5, 2)
    before = made(student, teacher, batch()).loss
    with torch.no_grad():
        for outputs, layer in ((student, 2), (teacher, 4)):
            outputs.hidden[layer] *= 1000
    torch.testing.assert_close(made(student, teacher, batch()).loss, before)


def test_equal_states_have_no_loss_and_for_infonce_less_than_shuffled_ones():
    for distance in ("mse", "cosine", "infonce"):
        made = objective(3, 3, (D_T, D_T), distance=distance)
        teacher, shuffled = side(D_T, 3, 2), side(D_T, 3, 2)
        shuffled.hidden = {layer: hidden.roll(1, 0) for layer, hidden in shuffled.hidden.items()}
        same = made(side(D_T, 3, 2), teacher, batch(normalizer=N)).loss
        assert same < made(shuffled, teacher, batch(normalizer=N)).loss - 0.5
        assert same.abs() < 1e-12 or distance == "infonce"


@pytest.mark.parametrize("distance", ["mse", "cosine", "infonce"])
def test_gradients_reach_every_captured_state_and_linear_but_not_the_teacher(distance):
    made = objective(distance=distance)
    student, teacher = side(D_S, 3, 1), side(D_T, 5, 2)
    made(student, teacher, batch()).loss.backward()
    assert all(hidden.grad.abs().sum() > 0 for hidden in student.hidden.values())
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    assert all(hidden.grad is None for hidden in teacher.hidden.values())


@pytest.mark.parametrize("distance", ["mse", "cosine", "infonce"])
def test_a_batch_without_answers_gives_zero_and_a_gradient_of_zero_for_every_linear(distance):
    made = objective(distance=distance)
    losses = made(side(D_S, 3, 1, tokens=0), side(D_T, 5, 2, tokens=0), batch(0))
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert all(parameter.grad.abs().max() == 0 for parameter in made.parameters())
    assert losses.report[f"hidden_{distance}"].count == 0


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_two_halves_sum_to_the_whole(distance):
    made = objective(distance=distance)
    student, teacher = side(D_S, 3, 1), side(D_T, 5, 2)
    whole = made(student, teacher, batch(normalizer=N)).loss
    total = 0.0
    for at in (slice(0, 2), slice(2, N)):
        halves = [
            Outputs(
                o.answer_hidden[at], o.head, {}, NONE, NONE, NONE.long(), hidden={k: v[at] for k, v in o.hidden.items()}
            )
            for o in (student, teacher)
        ]
        total = total + made(*halves, batch(len(range(N)[at]), N)).loss
    torch.testing.assert_close(total, whole)


def test_needs_name_the_mapped_layers_and_the_report_has_each():
    made = HiddenStates(layers=[[0, 3], [2, 3]])
    needs = made.needs(3, 5)
    assert (needs.teacher, needs.student_hidden, needs.teacher_hidden) == (True, (0, 2), (3,))
    made.make_heads(D_S, D_T)
    report = made.double()(side(D_S, 3, 1), side(D_T, 5, 2), batch()).report
    assert set(report) == {"hidden_mse", "hidden_mse/layer_0", "hidden_mse/layer_2"}
    layers = [report[f"hidden_mse/layer_{layer}"].mean for layer in (0, 2)]
    assert report["hidden_mse"].mean == pytest.approx(sum(layers) / 2)


def test_a_linear_stands_between_equal_widths_only_if_asked_for():
    assert not objective(widths=(D_T, D_T)).heads
    assert len(objective(widths=(D_T, D_T), linear="always").heads) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l1"}, "distance='l1', expected one of: mse, cosine, infonce"),
        ({"linear": "no"}, "linear='no', expected one of: auto, always"),
        ({"distance": "infonce", "temperature": 0}, "temperature=0, expected a number > 0"),
        ({"layers": [7]}, r"has layers 0\.\.2"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message):
        HiddenStates(**options).needs(3, 5)
