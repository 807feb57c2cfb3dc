"""What moves a classifier's weights: schedules, optimisers, and the moving average."""

import pytest
import torch
from pydantic import ValidationError

from mmkd.config.vision_schema import RecipeSection
from mmkd.vision_distill.methods import build_method
from mmkd.vision_distill.task import VisionTask
from mmkd.vision_distill.trainer import build_optimizer, learning_rate_schedule
from tests.vision_distill.tiny import SIDE, images, vit


def task_of(**options):
    torch.manual_seed(0)
    return VisionTask(vit(), (SIDE, SIDE), [(build_method("cross_entropy", {}), 1.0)], **options)


def stepped(task, optimizer):
    task({"student_pixels": images(4), "labels": torch.tensor([0, 3, 3, 1])}).backward()
    optimizer.step()
    optimizer.zero_grad()
    task.step_finished(0.5)


def test_a_step_schedule_warms_up_and_drops_to_a_tenth_but_not_below_its_least():
    recipe = RecipeSection(
        steps=10, learning_rate=0.1, least_learning_rate=5e-3, warmup=0.2, schedule="step", drops=[0.5, 0.8]
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = learning_rate_schedule(optimizer, recipe)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.005, 0.005])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "step needs drops"),
        ({"drops": [0.5]}, "cosine has none"),
        ({"schedule": "step", "drops": [0.6, 0.3]}, "each after the last"),
        ({"schedule": "step", "drops": [30]}, "from 0 to 1"),
    ],
)
def test_drops_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        RecipeSection(steps=10, **settings)


def test_the_average_follows_the_student_by_its_decay():
    task = task_of(average=0.75)
    optimizer = build_optimizer(task, RecipeSection(steps=2, optimizer="lamb", learning_rate=0.01))
    expected = {name: t.clone() for name, t in task.student.state_dict().items()}
    for _ in range(2):
        stepped(task, optimizer)
        expected = {name: 0.75 * expected[name] + 0.25 * t for name, t in task.student.state_dict().items()}
    found = task.average.module.state_dict()
    assert any(not torch.equal(found[name], t) for name, t in task.student.state_dict().items())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not any(name.startswith("average") for name, _ in task.named_parameters())
