"""A live teacher cut up over the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch

from mmkd.config.schema import Config, TeacherSection
from mmkd.errors import ConfigError
from mmkd.objectives import Needs
from mmkd.teachers.checks import check_section, check_teacher
from mmkd.teachers.live import LiveTeacher


def share(model: str) -> tuple[int, int, int]:
    """Parameters of a teacher, those that this rank holds beside padding, and how many there are."""
    from mmkd.train.deepspeed import prepare_launch

    prepare_launch("auto")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    teacher = LiveTeacher(
        model, torch.float32, "sdpa", torch.device("cpu"), zero3={"stage3_param_persistence_threshold": 0}
    )
    _calls_its_head_alone(teacher, model)
    with pytest.raises(ConfigError, match=r"teacher.zero3 gathers the teacher's weights for reading only"):
        teacher.check(Needs(teacher=True, teacher_head=True))
    teacher.check(Needs(teacher=True, teacher_attention=(0,), turned=True))  # reads two tokens with what is cut up
    parameters = list(teacher.model.parameters())
    held = sum(parameter.numel() + parameter.ds_tensor.numel() for parameter in parameters)
    return sum(parameter.ds_numel for parameter in parameters), held, len(parameters)


def _calls_its_head_alone(teacher: LiveTeacher, model: str) -> None:
    """Its head is gathered once; the calls, here more on one rank than on the other, wait for nobody."""
    whole = LiveTeacher(model, torch.float32, "sdpa", torch.device("cpu"))
    hidden = torch.randn(3, whole.model.config.text_config.hidden_size)
    products = teacher.head.gathered()
    for _ in range(1 + torch.distributed.get_rank()):
        torch.testing.assert_close(products(hidden), whole.model.get_output_embeddings()(hidden))


@pytest.mark.distributed
def test_each_of_two_ranks_holds_half_of_it(teacher):
    for result in ranks.on_ranks(2, ranks.call, __file__, "share", str(teacher)):
        whole, held, count = result
        assert whole / 2 <= held <= whole / 2 + count  # a share is rounded up


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "live", "model": "m", "quantize": "int8"}, "teacher.zero3 has no place beside quantize: int8"),
        ({"kind": "shared"}, "teacher.zero3 has no place beside kind: shared"),
        ({"kind": "cached", "store": "s"}, "teacher.zero3 has no place beside kind: cached"),
    ],
)
def test_only_a_live_teacher_of_whole_numbers_can_be_cut_up(section, message):
    with pytest.raises(ConfigError, match=message):
        check_section(TeacherSection.model_validate(section | {"zero3": True}))


def test_a_feature_cache_which_compares_towers_is_refused_beside_it(config, teacher):
    settings = config(teacher={"kind": "live", "model": str(Path(teacher)), "zero3": True})
    settings["data"]["cache_features"] = True
    with pytest.raises(ConfigError, match="compares the towers of both sides weight by weight"):
        check_teacher(Config.model_validate(settings))


def test_an_objective_that_sends_gradients_through_it_is_refused_before_it_is_loaded(config):
    settings = config(teacher={"kind": "live", "model": "nowhere", "zero3": True}, objectives=[{"name": "ofa_logits"}])
    with pytest.raises(ConfigError, match="ofa_logits sends gradients through its norm and head; leave zero3 out"):
        check_teacher(Config.model_validate(settings))
