"""Methods across families: what is compared differs in the method alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.families import METHODS, PAIRS, student_config, teacher_config
from mmkd.vision_distill.methods import method_options

OUT = Path("runs/families")


@pytest.mark.parametrize("pair", PAIRS)
def test_students_of_a_pair_differ_in_objectives_alone_and_never_train_on_what_is_scored(pair):
    configs = {method: student_config(pair, method, 1, OUT) for method in METHODS}
    for config in configs.values():
        for section in config.objectives:
            method_options(section.name, section.options())
    plain = [config.model_dump(exclude={"objectives": True, "run": {"dir"}}) for config in configs.values()]
    assert all(one == plain[0] for one in plain)
    student, teacher = configs["ofa"], teacher_config(pair, OUT)
    assert student.teacher.model == f"{teacher.run.dir}/model"
    assert student.student.model != teacher.student.model
    assert teacher.data.train.options() == student.data.train.options()
    assert student.data.test.options()["split"] == "test" != student.data.train.options().get("split", "train")
