"""The vision tower of a student learns from that of a teacher of another image size, in a run."""

from __future__ import annotations

import pytest
import ranks
import torch

from mmkd.compose import load
from mmkd.config.schema import Config
from mmkd.errors import ConfigError
from mmkd.teachers.checks import check_teacher

OBJECTIVES = [{"name": "cross_entropy"}, {"name": "tower_features", "linear": "always"}]
LEARNS = ["vision", "projector", "language", "embeddings", "voco"]


def tower_run(config, name: str, foreign_teacher, micro: int, zero: int = 2) -> dict:
    # The teacher has another tokenizer, too: nothing of its text is read.
    stage = {"steps": 3, "micro_batch_size": micro, "trainable": LEARNS, "learning_rate": 3e-3}
    teacher = {"kind": "live", "model": str(foreign_teacher)}
    return config(name, stage=stage, zero=zero, objectives=OBJECTIVES, teacher=teacher)


@pytest.mark.distributed
def test_it_learns_the_same_on_one_rank_and_on_two_whatever_the_accumulation(config, foreign_teacher, student):
    one = tower_run(config, "one", foreign_teacher, micro=8)
    found = ranks.run(one, world=1)
    figures = [line["tower_mse"] for line in ranks.lines(one)]
    assert figures[-1] < figures[0]
    two = tower_run(config, "two", foreign_teacher, micro=2, zero=3)
    assert ranks.run(two, world=2) == pytest.approx(found, rel=1e-4)
    assert [line["tower_mse"] for line in ranks.lines(two)] == pytest.approx(figures, rel=1e-4)
    trained = load(one["run"]["dir"] + "/model").model
    assert not any("objectives" in name or "linear." in name for name in trained.vision_tower.state_dict())
    before = dict(load(student).model.vision_tower.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in trained.vision_tower.named_parameters())


@pytest.mark.parametrize(
    ("section", "trainable", "message"),
    [
        ({"kind": "shared"}, LEARNS, "teacher.kind shared has none of its own. Use teacher.kind: live"),
        ({"kind": "live", "model": "m"}, ["projector"], "`trainable` leaves that out; add vision to it"),
    ],
)
def test_a_comparison_that_teaches_nothing_is_refused(config, section, trainable, message):
    settings = config(stage={"trainable": trainable}, objectives=OBJECTIVES, teacher=section)
    with pytest.raises(ConfigError, match=message):
        check_teacher(Config.model_validate(settings))
