"""OFA's loss against the formula, in value and gradient, and where floating point is tight."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from mmkd.errors import ConfigError
from mmkd.objectives.ofa import ofa_loss, stage_eps

N, K = 7, 11
# (teacher's probabilities, eps, released, paper) for the student's (.5, .3, .2) and target 0, computed by hand.
VECTORS = [
    ((0.7, 0.2, 0.1), 1.0, 0.8869, 1.5801),
    ((0.7, 0.2, 0.1), 1.5, 1.0018, 1.9381),
    ((0.7, 0.2, 0.1), 2.0, 1.3743, 2.4049),
    ((0.1, 0.7, 0.2), 1.0, 1.2340, 1.9271),
    ((0.1, 0.7, 0.2), 1.5, 0.9556, 1.9643),
    ((0.1, 0.7, 0.2), 2.0, 0.7999, 2.0034),
]


def naive_ofa(zs, zt, targets, eps, form, t):  # [n, K]; the formula, sample by sample and class by class
    losses = []
    for s, p, c in zip(softmax(zs / t, -1), softmax(zt / t, -1), targets.tolist(), strict=True):
        total = torch.zeros((), dtype=zs.dtype)
        for i in range(len(p)):
            m = float(i == c)
            if form == "released":
                weight = (p[i] + m) ** eps - m
            else:
                weight = (1 + p[i]) ** eps if i == c else p[i]
            total = total - weight * torch.log(s[i])
        losses.append(total)
    return torch.stack(losses)


def logits(seed, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(N, K, generator=generator, dtype=torch.float64)).to(dtype)


TARGETS = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("teacher", "eps", "released", "paper"), VECTORS)
def test_both_forms_give_the_numbers_computed_by_hand(teacher, eps, released, paper):
    zs, zt = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([teacher]).log()
    target = torch.tensor([0])
    assert ofa_loss(zs, zt, target, eps=eps, form="released").item() == pytest.approx(released, abs=5e-5)
    assert ofa_loss(zs, zt, target, eps=eps, form="paper").item() == pytest.approx(paper, abs=5e-5)


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("eps", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_formula(form, eps, temperature, dtype, tolerance):
    zt = logits(2)
    found, expected = logits(1, dtype).requires_grad_(), logits(1).requires_grad_()
    loss = ofa_loss(found, zt.to(dtype), TARGETS, eps=eps, form=form, temperature=temperature)
    reference = naive_ofa(expected, zt, TARGETS, eps, form, temperature)
    torch.testing.assert_close(loss.double(), reference, rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=tolerance, atol=tolerance)


def test_at_eps_one_the_forms_are_soft_cross_entropy_with_and_without_the_label():
    zs, zt = logits(1), logits(2)
    soft = cross_entropy(zs, softmax(zt, -1), reduction="none")
    torch.testing.assert_close(ofa_loss(zs, zt, TARGETS, form="released"), soft)
    hard = cross_entropy(zs, TARGETS, reduction="none")
    torch.testing.assert_close(ofa_loss(zs, zt, TARGETS, form="paper"), soft + hard)


def test_no_gradient_reaches_the_teacher():
    zt = logits(2).requires_grad_()
    ofa_loss(logits(1).requires_grad_(), zt, TARGETS, eps=1.4).sum().backward()
    assert zt.grad is None


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_of_any_size_give_numbers(form, dtype):
    """softmax in half precision underflows here, and 0 * log(0) is no number."""
    zs = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=dtype, requires_grad=True)
    zt = torch.tensor([[-60000.0, 60000.0, 0.0]], dtype=dtype)
    for target in range(3):
        loss = ofa_loss(zs, zt, torch.tensor([target]), eps=1.5, form=form)
        (gradient,) = torch.autograd.grad(loss.sum(), zs)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_exact_as_its_logits(dtype):
    zs, zt = logits(1, dtype), logits(2, dtype)
    found = ofa_loss(zs, zt, TARGETS, eps=1.5, form="released")
    torch.testing.assert_close(
        found.double(), naive_ofa(zs.double(), zt.double(), TARGETS, 1.5, "released", 1.0), rtol=1e-5, atol=1e-5
    )


def test_a_target_that_the_teacher_hardly_believes_in_keeps_its_small_weight():
    """(1 + p)^eps - 1 is 0 in fp32 for p below 6e-8."""
    zs = torch.zeros(1, 3, requires_grad=True)
    zt = torch.tensor([[-25.0, 0.0, -200.0]])
    ofa_loss(zs, zt, torch.tensor([0]), eps=1.0, form="released").backward()
    soft = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    cross_entropy(soft, softmax(zt.double(), -1)).backward()
    torch.testing.assert_close(zs.grad.double(), soft.grad, rtol=1e-5, atol=0)
    loss = ofa_loss(torch.tensor([[0.0, 100.0, 0.0]]), zt, torch.tensor([0]), eps=2.0, form="released")
    p = torch.softmax(zt.double(), -1)[0, 0]
    assert loss.item() == pytest.approx(float(((1 + p) ** 2 - 1) * 100), rel=1e-5)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_classes_that_both_sides_rule_out_change_nothing(form):
    zs, zt = logits(1, torch.float32).requires_grad_(), logits(2, torch.float32)
    padding = torch.full((N, 2), -torch.inf)
    padded = ofa_loss(torch.cat([zs, padding], 1), torch.cat([zt, padding], 1), TARGETS, eps=1.3, form=form)
    torch.testing.assert_close(padded, ofa_loss(zs, zt, TARGETS, eps=1.3, form=form))
    (gradient,) = torch.autograd.grad(padded.sum(), zs)
    assert torch.isfinite(gradient).all()


def test_one_eps_serves_all_stages_and_the_last_of_a_list_the_final_logits():
    assert stage_eps(1.2, 4) == [1.2] * 5
    assert stage_eps([1, 1.1, 1.2, 1.3, 1.5], 4) == [1.0, 1.1, 1.2, 1.3, 1.5]


@pytest.mark.parametrize(
    ("eps", "message"),
    [([1.0, 1.2], "has 2 values, expected one number, or 5"), (0.5, r"eps=0\.5, expected a number >= 1")],
)
def test_an_eps_that_fits_no_stages_is_refused(eps, message):
    with pytest.raises(ConfigError, match=message):
        stage_eps(eps, 4)
