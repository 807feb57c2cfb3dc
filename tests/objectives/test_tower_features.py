"""Distillation of the vision tower's patch features against its definition, place by place."""

import pytest
import torch

from mmkd.errors import ConfigError
from mmkd.objectives import AnswerBatch, Outputs, TowerFeatures

M, C_S, C_T = 3, 4, 6
NONE = torch.zeros(1, 0, dtype=torch.bool)
REAL = torch.tensor([True, False, True])  # the second image is a blank one


def side(channels, grid, seed, images=M, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    tower = torch.randn(images, channels, *grid, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return Outputs(torch.zeros(0, 2), lambda h: h, {}, NONE, NONE, NONE.long(), tower=tower)


def batch(images=REAL, normalizer=1.0):
    zeros = torch.zeros(0, dtype=torch.long)
    text = torch.ones(1, 1).bool()
    return AnswerBatch(zeros, zeros, zeros, text, text.long(), 1.0, images=images, image_normalizer=normalizer)


def objective(widths=(C_S, C_T), **options):
    torch.manual_seed(7)
    made = TowerFeatures(**options)
    made.make_heads(*widths)
    return made.double()


def cells(size, count):  # first and last place of each cell of an average by area, as PyTorch defines it
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def naive(made, student, teacher, grid):
    total = 0.0
    for image in REAL.nonzero()[:, 0]:
        for row in range(grid[0]):
            for col in range(grid[1]):
                at = []
                for tower in (student.tower, teacher.tower.detach()):
                    (a, b), (c, d) = cells(tower.shape[2], grid[0])[row], cells(tower.shape[3], grid[1])[col]
                    at.append(tower[image, :, a:b, c:d].mean((1, 2)))
                s, t = made.linear.weight @ at[0] if hasattr(made.linear, "weight") else at[0], at[1]
                loss = (s - t).square().sum() / t.square().sum()
                if made.distance == "cosine":
                    loss = 1 - (s @ t) / (s.norm() * t.norm())
                total = total + loss / (grid[0] * grid[1])
    return total


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize(("ours", "theirs"), [((4, 4), (4, 4)), ((5, 3), (2, 7)), ((2, 2), (9, 9))])
def test_value_and_gradient_equal_the_definition_on_the_coarser_grid(distance, ours, theirs):
    student, teacher, made = side(C_S, ours, 0), side(C_T, theirs, 1), objective(distance=distance)
    found = made(student, teacher, batch(normalizer=5.0)).loss
    expected = naive(made, student, teacher, tuple(map(min, ours, theirs))) / 5
    torch.testing.assert_close(found, expected)
    wanted = (student.tower, made.linear.weight)
    for a, b in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(a, b)
    found = made(student, teacher, batch()).loss
    assert torch.autograd.grad(found, teacher.tower, allow_unused=True) == (None,)


def test_the_grid_of_siglip_is_brought_to_a_smaller_one_without_losing_a_patch():
    student, teacher, made = side(C_T, (8, 8), 0), side(C_T, (27, 27), 1), objective((C_T, C_T))
    before = made(student, teacher, batch()).loss
    with torch.no_grad():
        teacher.tower[0, :, 26, 13] += 100.0
    assert made(student, teacher, batch()).loss != before


def test_a_linear_stands_between_unequal_widths_or_where_it_is_asked_for():
    assert not list(objective((C_T, C_T)).parameters())
    assert [p.shape for p in objective((C_T, C_T), linear="always").parameters()] == [(C_T, C_T)]
    assert [p.shape for p in objective().parameters()] == [(C_T, C_S)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fp32_is_exact_and_bf16_near(dtype, tolerance):
    exact = objective()(side(C_S, (5, 3), 0), side(C_T, (4, 4), 1), batch()).loss
    made = objective().to(dtype)
    found = made(side(C_S, (5, 3), 0, dtype=dtype), side(C_T, (4, 4), 1, dtype=dtype), batch()).loss
    assert found.dtype == torch.float32
    assert abs(found - exact) / exact < tolerance


def test_two_halves_sum_to_the_whole_and_blank_images_count_for_nothing():
    student, teacher, made = side(C_S, (4, 4), 0), side(C_T, (4, 4), 1), objective()
    whole = made(student, teacher, batch())
    halves = []
    for part in (slice(0, 2), slice(2, 3)):
        sides = [
            Outputs(s.answer_hidden, s.head, {}, NONE, NONE, NONE.long(), tower=s.tower[part])
            for s in (student, teacher)
        ]
        halves.append(made(*sides, batch(REAL[part])))
    torch.testing.assert_close(halves[0].loss + halves[1].loss, whole.loss)
    assert whole.report["tower_mse"].count == 2
    blank = made(student, teacher, batch(torch.zeros(M, dtype=torch.bool)))
    blank.loss.backward()
    assert blank.loss == 0
    assert made.linear.weight.grad.abs().max() == 0


def test_sides_that_cut_images_into_other_tiles_are_refused():
    with pytest.raises(ConfigError, match=r"into 4 tiles, the student into 3; compose both with the same vision.tiles"):
        objective()(side(C_S, (4, 4), 0), side(C_T, (4, 4), 1, images=4), batch())


def test_a_wrong_option_says_what_is_allowed():
    with pytest.raises(ConfigError, match="distance='l2', expected one of: mse, cosine"):
        TowerFeatures(distance="l2")
