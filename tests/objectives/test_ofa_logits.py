"""OFA-KD's language half against its definition: staged exits of the student through the teacher's frozen head."""

import pytest
import torch
from torch import nn

from mmkd.errors import ConfigError
from mmkd.objectives import AnswerBatch, OfaLogits, Outputs

N, D_S, D_T, V, DEPTH = 7, 6, 10, 13, 8
STAGES = (1, 3, 5, 7)
NONE = torch.zeros(1, 0, dtype=torch.bool)
TARGETS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(3))
# (teacher's probabilities, eps, released, paper) for the student's (.5, .3, .2) and target 0, computed by hand.
VECTORS = [
    ((0.7, 0.2, 0.1), 1.0, 0.8869, 1.5801),
    ((0.7, 0.2, 0.1), 1.5, 1.0018, 1.9381),
    ((0.7, 0.2, 0.1), 2.0, 1.3743, 2.4049),
    ((0.1, 0.7, 0.2), 1.0, 1.2340, 1.9271),
    ((0.1, 0.7, 0.2), 1.5, 0.9556, 1.9643),
    ((0.1, 0.7, 0.2), 2.0, 0.7999, 2.0034),
]


def batch(targets=TARGETS, normalizer=1.0):
    zeros = torch.zeros(len(targets), dtype=torch.long)
    return AnswerBatch(targets, zeros, zeros, torch.ones(1, 1).bool(), torch.zeros(1, 1).long(), normalizer)


def student_side(dtype=torch.float64, tokens=N):
    torch.manual_seed(1)
    hidden = {s: (9 * torch.randn(tokens, D_S, dtype=torch.float64)).to(dtype).requires_grad_() for s in STAGES}
    return Outputs(torch.zeros(tokens, D_S), lambda h: h, {}, NONE, NONE, NONE.long(), hidden=hidden)


def teacher_side(dtype=torch.float64, tokens=N, vocabulary=None):
    """With a final norm (weights and bias) and a head of its own, frozen as a teacher's are."""
    torch.manual_seed(2)
    norm, head = nn.LayerNorm(D_T), nn.Linear(D_T, V, bias=False)
    for parameter in (*norm.parameters(), *head.parameters()):
        nn.init.normal_(parameter, std=0.7)
    norm, head = (m.to(dtype).requires_grad_(False) for m in (norm, head))
    hidden = torch.randn(tokens, D_T, dtype=torch.float64).to(dtype).requires_grad_()
    return Outputs(hidden, head, {}, NONE, NONE, NONE.long(), vocabulary=vocabulary, final_norm=norm)


def objective(dtype=torch.float64, **options):
    torch.manual_seed(4)
    made = OfaLogits(**options)
    needs = made.needs(DEPTH, 3)
    assert (needs.student_hidden, needs.teacher, needs.teacher_head) == (STAGES, True, True)
    made.make_heads(D_S, D_T)
    return made.to(dtype)


def bucketed(log_s, p, c, k):
    """The k likeliest ids of the teacher, the target if it is none of them, and all others as one class."""
    ids = p.argsort(descending=True)[:k].tolist()
    ids += [] if c in ids else [c]
    others = [i for i in range(len(p)) if i not in ids]
    if others:
        log_s = torch.cat([log_s[ids], log_s[others].exp().sum().log()[None]])
        p = torch.cat([p[ids], p[others].sum()[None]])
    else:
        log_s, p = log_s[ids], p[ids]
    return log_s, p, ids.index(c)


def naive(made, student, teacher, eps, form, targets=TARGETS, real=V, k=None):
    """Token by token and class by class; only the first `real` classes exist."""
    total = 0.0
    for layer, linear in zip(STAGES, made.heads, strict=True):
        for n, c in enumerate(targets.tolist()):
            h = student.hidden[layer][n]
            projected = linear.weight @ (h / (h.square().mean() + 1e-6).sqrt())
            x = projected - projected.mean()
            x = x / (x.square().mean() + teacher.final_norm.eps).sqrt()
            logits = teacher.head.weight @ (x * teacher.final_norm.weight + teacher.final_norm.bias)
            log_s = torch.log(torch.softmax(logits[:real], -1))
            p = torch.softmax((teacher.head.weight @ teacher.answer_hidden[n])[:real], -1).detach()
            if k is not None:
                log_s, p, c = bucketed(log_s, p, c, k)
            for i in range(len(p)):
                m = float(i == c)
                if form == "released":
                    weight = (p[i] + m) ** eps - m
                else:
                    weight = (1 + p[i]) ** eps if i == c else p[i]
                total = total - weight * log_s[i] / len(STAGES)
    return total


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(("eps", "chunk"), [(1.0, 512), (1.4, 1), (2.0, 3)])
def test_value_and_gradient_equal_the_definition_for_every_chunk_size(form, eps, chunk):
    made = objective(eps=eps, form=form, chunk=chunk)
    student, teacher = student_side(), teacher_side()
    found = made(student, teacher, batch(normalizer=N)).loss
    expected = naive(made, student, teacher, eps, form) / N
    torch.testing.assert_close(found, expected)
    learned = [*student.hidden.values(), *made.parameters()]
    torch.testing.assert_close(torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned))


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 4, V - 2, V - 1])
def test_the_top_k_the_target_and_one_bucket_of_the_rest_are_the_classes(k, form, dtype):
    made = objective(dtype, eps=1.4, form=form, top_k=k, chunk=3)
    student, teacher, real = student_side(dtype), teacher_side(dtype, vocabulary=V - 1), V - 1
    among = (teacher.head(teacher.answer_hidden)[:, :real].topk(k).indices == TARGETS[:, None]).any(1)
    assert k != 4 or 0 < among.sum() < N  # both cases are met
    found = made(student, teacher, batch(normalizer=N)).loss
    targets = TARGETS.clamp(max=real - 1)
    assert torch.equal(targets, TARGETS)
    expected = naive(made, student, teacher, 1.4, form, targets, real, k) / N
    learned = [*student.hidden.values(), *made.parameters()]
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), **tolerance)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_top_k_of_the_whole_vocabulary_or_more_is_the_loss_without_it(form):
    student, teacher = student_side(), teacher_side()
    whole, *others = (objective(eps=1.4, form=form, top_k=k) for k in (None, V, V + 9))
    losses = [made(student, teacher, batch()).loss for made in (whole, *others)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_a_bucket_that_holds_next_to_nothing_has_finite_gradients_in_fp32():
    made = objective(torch.float32, top_k=2)
    student, teacher = student_side(torch.float32), teacher_side(torch.float32)
    with torch.no_grad():
        teacher.head.weight.mul_(200.0)  # both sides are sure of one id; the mass of the rest underflows
    losses = made(student, teacher, batch())
    losses.loss.backward()
    assert losses.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize(("teacher_probs", "eps", "released", "paper"), VECTORS)
def test_both_forms_give_the_numbers_computed_by_hand_through_the_heads(teacher_probs, eps, released, paper):
    for form, expected in (("released", released), ("paper", paper)):
        made = OfaLogits(eps=eps, form=form)
        made.needs(4, 4)
        made.make_heads(3, 3)
        for linear in made.heads:
            nn.init.eye_(linear.weight)
        probs = torch.tensor([[0.5, 0.3, 0.2]])
        hidden = {s: torch.ones(1, 3) for s in range(4)}
        student = Outputs(torch.ones(1, 3), lambda h: h, {}, NONE, NONE, NONE.long(), hidden=hidden)
        teacher = Outputs(torch.tensor([teacher_probs]).log(), lambda h: h, {}, NONE, NONE, NONE.long())
        teacher.final_norm = lambda h, probs=probs: h * 0 + probs.log()  # "norm" that gives the student's logits
        loss = made(student, teacher, batch(torch.tensor([0]))).loss
        assert loss.item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_fp32_is_exact_and_bf16_near(form):
    exact = None
    for dtype, tolerance in ((torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        made = objective(dtype, eps=1.3, form=form)
        loss = made(student_side(dtype), teacher_side(dtype), batch()).loss
        exact = loss if exact is None else exact
        torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)


def test_heads_in_fp32_learn_between_sides_in_bf16():
    made = objective(torch.float32)
    made(student_side(torch.bfloat16), teacher_side(torch.bfloat16), batch()).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in made.parameters())


def test_padding_of_the_vocabulary_and_tokens_the_teacher_lacks_count_for_nothing():
    made, real = objective(eps=1.2), V - 3
    student, teacher = student_side(), teacher_side(vocabulary=real)
    known = TARGETS.clamp(max=real - 1)
    torch.testing.assert_close(
        made(student, teacher, batch(known)).loss, naive(made, student, teacher, 1.2, "paper", known, real)
    )
    unknown = torch.full_like(TARGETS, V - 1)
    assert made(student, teacher, batch(unknown)).loss.item() == 0.0


def test_gradients_reach_every_stage_but_neither_the_teachers_states_nor_its_head():
    made, student, teacher = objective(), student_side(), teacher_side()
    made(student, teacher, batch()).loss.backward()
    assert all(hidden.grad.abs().sum() > 0 for hidden in student.hidden.values())
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    assert teacher.answer_hidden.grad is None
    assert all(p.grad is None for p in (*teacher.head.parameters(), *teacher.final_norm.parameters()))


def test_a_batch_without_answers_gives_zero_and_a_gradient_of_zero_for_every_linear():
    made = objective()
    losses = made(student_side(tokens=0), teacher_side(tokens=0), batch(TARGETS[:0]))
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert all(parameter.grad.abs().max() == 0 for parameter in made.parameters())
    assert losses.report["ofa"].count == 0


def test_the_head_of_the_teacher_is_asked_once_for_all_stages_of_a_chunk():
    made, student, teacher = objective(chunk=4), student_side(), teacher_side()
    shapes, head = [], teacher.head
    teacher.head = lambda hidden: shapes.append(tuple(hidden.shape)) or head(hidden)
    report = made(student, teacher, batch()).report
    assert shapes == [(4, 4, D_T), (4, D_T), (3, 4, D_T), (3, D_T)]
    assert set(report) == {"ofa"} | {f"{name}/layer_{s}" for name in ("ofa", "ofa_accuracy") for s in STAGES}


@pytest.mark.parametrize(("depth", "stages"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (30, (7, 14, 22, 29))])
def test_stages_stand_at_quarters_of_any_depth(depth, stages):
    assert OfaLogits().needs(depth, 3).student_hidden == stages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.5}, r"eps=0\.5, expected a number >= 1"),
        ({"form": "code"}, "form='code', expected one of: paper, released"),
        ({"top_k": 0}, "top_k=0, expected a whole number >= 1"),
        ({"chunk": 0}, "chunk=0, expected a whole number >= 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message):
        OfaLogits(**options)
