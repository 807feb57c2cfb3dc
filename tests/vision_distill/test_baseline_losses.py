"""Binary cross-entropy, KD, DKD, DIST, FitNet, CRD and RKD against their formulas, in value and gradient."""

import math

import pytest
import torch
from torch.nn.functional import smooth_l1_loss, softmax

from mmkd.vision_distill.feature_losses import crd, fitnet, rkd
from mmkd.vision_distill.logit_losses import binary_cross_entropy, dist, dkd, kd

B, K, D = 6, 5, 4
TARGETS = torch.tensor([0, 3, 3, 1, 4, 0])


def normal(seed, *shape, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def naive_binary(zs, shares, smoothing):
    total = 0.0
    for z, share in zip(zs.flatten(), shares.flatten().tolist(), strict=True):
        y, s = (1 - smoothing) * share + smoothing / zs.shape[1], 1 / (1 + (-z).exp())
        total = total - y * s.log() - (1 - y) * (1 - s).log()
    return total / zs.numel()


def naive_kd(zs, zt, t):
    p, q = softmax(zt / t, -1), softmax(zs / t, -1)
    return t * t * (p * (p / q).log()).sum() / len(p)


def naive_dkd(zs, zt, targets, alpha, beta, t):
    total = 0.0
    for s, p, c in zip(softmax(zs / t, -1), softmax(zt / t, -1), targets.tolist(), strict=True):
        others = [i for i in range(len(p)) if i != c]
        tckd = p[c] * (p[c] / s[c]).log() + (1 - p[c]) * ((1 - p[c]) / (1 - s[c])).log()
        p_hat, s_hat = p[others] / p[others].sum(), s[others] / s[others].sum()
        total = total + alpha * tckd + beta * (p_hat * (p_hat / s_hat).log()).sum()
    return t * t * total / len(targets)


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def naive_dist(zs, zt, beta, gamma, t):
    q, p = softmax(zs / t, -1), softmax(zt / t, -1)
    inter = sum(1 - pearson(q[i], p[i]) for i in range(len(q))) / len(q)
    intra = sum(1 - pearson(q[:, c], p[:, c]) for c in range(q.shape[1])) / q.shape[1]
    return t * t * (beta * inter + gamma * intra)


def naive_crd(s, t, targets, temperature):
    s, t = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    total = 0.0
    for a, b in ((s, t), (t, s)):
        for i in range(len(a)):
            rivals = [j for j in range(len(a)) if j == i or targets[j] != targets[i]]
            scores = torch.stack([(a[i] * b[j]).sum() / temperature for j in rivals])
            total = total - torch.log(scores.exp()[rivals.index(i)] / scores.exp().sum()) / len(a)
    return total


def naive_rkd(s, t, distance, angle):
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    triplets = [(i, j, k) for i, j in pairs for k in range(n) if k not in (i, j)]

    def distances(x):
        lengths = torch.stack([(x[i] - x[j]).norm() for i, j in pairs])
        return lengths / lengths.mean()

    def cosines(x):
        return torch.stack([torch.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0) for i, j, k in triplets])

    l_d, l_a = smooth_l1_loss(distances(s), distances(t)), smooth_l1_loss(cosines(s), cosines(t))
    return distance * l_d + angle * l_a


CASES = {
    "binary": (
        lambda s, t: binary_cross_entropy(s, softmax(t.float(), -1)),
        lambda s, t: naive_binary(s, softmax(t.float(), -1), 0.0),
        (B, K),
    ),
    "binary, smooth": (
        lambda s, t: binary_cross_entropy(s, softmax(t.float(), -1), 0.3),
        lambda s, t: naive_binary(s, softmax(t.float(), -1), 0.3),
        (B, K),
    ),
    "kd": (lambda s, t: kd(s, t), lambda s, t: naive_kd(s, t, 1.0), (B, K)),
    "kd at 4": (lambda s, t: kd(s, t, 4.0), lambda s, t: naive_kd(s, t, 4.0), (B, K)),
    "dkd": (lambda s, t: dkd(s, t, TARGETS), lambda s, t: naive_dkd(s, t, TARGETS, 1, 2, 1), (B, K)),
    "dkd at 4": (
        lambda s, t: dkd(s, t, TARGETS, alpha=0.5, beta=8.0, temperature=4.0),
        lambda s, t: naive_dkd(s, t, TARGETS, 0.5, 8.0, 4.0),
        (B, K),
    ),
    "dist": (lambda s, t: dist(s, t), lambda s, t: naive_dist(s, t, 1, 1, 1), (B, K)),
    "dist at 2": (lambda s, t: dist(s, t, 2.0, 3.0, 2.0), lambda s, t: naive_dist(s, t, 2.0, 3.0, 2.0), (B, K)),
    "crd": (
        lambda s, t: crd(s, t.detach(), TARGETS, 0.5),
        lambda s, t: naive_crd(s, t, TARGETS, 0.5),
        (B, D),
    ),
    "rkd": (lambda s, t: rkd(s, t), lambda s, t: naive_rkd(s, t, 25.0, 50.0), (B, D)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_formula(name, dtype, tolerance):
    fast, naive, shape = CASES[name]
    teacher = normal(2, *shape)
    found, expected = normal(1, *shape).to(dtype).requires_grad_(), normal(1, *shape).requires_grad_()
    loss, reference = fast(found, teacher.to(dtype)), naive(expected, teacher)
    loss.backward()
    reference.backward()
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(loss.double(), reference, **close)
    scale = expected.grad.abs().max().clamp_min(1.0)
    torch.testing.assert_close(found.grad.double() / scale, expected.grad / scale, **close)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "rkd"])
def test_the_teacher_gets_no_gradient_and_its_twin_no_loss(name):
    fast, _, shape = CASES[name]
    student, teacher = normal(1, *shape).requires_grad_(), normal(2, *shape).requires_grad_()
    fast(student, teacher).backward()
    assert teacher.grad is None
    assert fast(teacher, teacher).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_inputs_give_numbers(name, dtype):
    fast, _, shape = CASES[name]
    student = normal(1, *shape, scale=10000.0).clamp(-60000, 60000).to(dtype).requires_grad_()
    teacher = normal(2, *shape, scale=10000.0).clamp(-60000, 60000).to(dtype)
    loss = fast(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_equal_samples_and_a_batch_of_one_give_numbers(name):
    fast, _, shape = CASES[name]
    for rows in (1, 2, shape[0]):
        if rows < shape[0] and ("dkd" in name or "crd" in name):
            continue  # their targets are those of the whole batch
        student = torch.ones(rows, shape[1], requires_grad=True)
        loss = fast(student, torch.ones(rows, shape[1]))
        loss.backward()
        assert math.isfinite(loss.item())
        assert torch.isfinite(student.grad).all()


def test_images_of_the_same_class_are_no_negatives_for_crd():
    s, t = normal(1, B, D), normal(2, B, D)
    everyone_alike = torch.zeros(B, dtype=torch.long)
    assert crd(s, t, everyone_alike).item() == pytest.approx(0.0, abs=1e-9)
    assert crd(s, t, torch.arange(B)).item() > crd(s, t, TARGETS).item() > 0


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((6, 6), (3, 3)), ((3, 3), (6, 6)), ((4, 4), (4, 4))])
def test_fitnet_compares_maps_on_the_coarser_grid(student_grid, teacher_grid):
    s, t = normal(1, B, D, *student_grid).requires_grad_(), normal(2, B, D, *teacher_grid)

    def halved(x):  # [B, D, 2r, 2c] -> [B, D, r, c]
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    a = halved(s) if student_grid > teacher_grid else s
    b = halved(t) if teacher_grid > student_grid else t
    expected = (a - b).square().sum() / a.numel()
    loss = fitnet(s, t)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (loss, expected)))


def test_fitnet_takes_odd_and_oblong_grids():
    s = normal(1, 2, 3, 27, 27).requires_grad_()
    loss = fitnet(s, normal(2, 2, 3, 7, 14))
    loss.backward()
    assert (s.grad.abs() > 0).all()  # every place has its say


@pytest.mark.parametrize("loss", [lambda s, t: crd(s, t, TARGETS), rkd])
def test_autocast_does_not_round_what_is_compared(loss):
    student, teacher = normal(1, B, 8).float(), normal(2, B, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(student, teacher)
    torch.testing.assert_close(rounded, loss(student, teacher), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rounding", [(1e-7, 1e-7), (0.0, 1e-7), (1e-7, 0.0), (0.0, 0.0)])
def test_an_image_that_is_twice_in_a_batch_does_not_blow_up_rkd(rounding):
    sides = [normal(seed, B, D).float() for seed in (1, 2)]
    for side, size in zip(sides, rounding, strict=True):
        side[1] = side[0] + size * normal(3, D).float()
    student, teacher = sides[0].requires_grad_(), sides[1]
    rkd(student, teacher).backward()
    assert student.grad.norm() < 10


def test_rkd_of_images_that_are_all_the_same_is_a_number():
    student = torch.ones(4, D).requires_grad_()
    loss = rkd(student, normal(2, 4, D).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
