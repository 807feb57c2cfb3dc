"""What holds for every registered objective: a step may be cut into micro batches and ranks, and run in bf16."""

import pytest
import torch

from mmkd.objectives import TokenLoss, names
from tests.objectives import steps
from tests.objectives.sides import NOTED, TOLERANCE, close
from tests.objectives.steps import ALL, CASES, cut, learned, objective, sides, step


def heads(name: str) -> list[bool]:
    """Token losses make gradients ahead where the head's weight is known."""
    return [False, True] if isinstance(objective(name), TokenLoss) else [False]


def test_every_registered_objective_has_a_case_here():
    assert {case.split()[0] for case in CASES} == set(names())


@pytest.mark.parametrize(("name", "whole"), [(name, whole) for name in CASES for whole in heads(name)])
def test_a_step_teaches_the_same_however_many_micro_batches_it_is_cut_into(name, whole):
    expected = None
    for accumulation in (1, 2, 4, 8):
        pair, made = sides(), objective(name)
        found = learned(made, pair, step(made, pair, cut(ALL, accumulation), whole=whole))
        assert any(gradient.abs().max() > 1e-3 for gradient in found[1 : 1 + len(pair[0].tensors())])
        expected = found if expected is None else expected
        close(found, expected, torch.float32)


@pytest.mark.distributed
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_two_ranks_teach_what_one_process_teaches(accumulation, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "tests/train"))
    import ranks

    for found in ranks.on_ranks(2, ranks.call, steps.__file__, "of_a_rank", accumulation):
        assert not isinstance(found, Exception), found
        for name, tensors in found.items():
            pair, made = sides(), objective(name)
            expected = learned(made, pair, step(made, pair, [ALL]))
            close([torch.as_tensor(tensor) for tensor in tensors], expected, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_in_bf16_loss_and_gradients_are_those_of_fp32(name):
    """Within 2 %: bf16 rounds a logit of 4 by up to 0.016, and so a probability by up to 1.6 %."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        pair, made = sides(dtype), objective(name)
        for parameter in made.parameters():
            parameter.data = parameter.data.bfloat16().to(dtype)
        loss = step(made, pair, [ALL], whole=True)
        assert loss.dtype == torch.float32
        learning = [*pair[0].tensors(), *made.parameters()]
        found.append([loss.detach(), *torch.autograd.grad(loss, learning, materialize_grads=True)])
    assert any(gradient.norm() > 0 for gradient in found[1][1:])
    for half, single in zip(*found, strict=True):
        error = ((half.float() - single).norm() / single.norm().clamp(min=1e-30)).item()
        NOTED.append((torch.bfloat16, error))
        assert error <= TOLERANCE[torch.bfloat16]
