"""Methods across families: what is compared differs in the method alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.families import BENCH, METHODS, PAIRS, concluded, student_config, teacher_config
from bench.rows import Row, append, surroundings
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


def test_means_and_gains_are_of_one_pair_and_of_the_seeds_that_both_methods_have(tmp_path):
    measured = {"kd a_b": [70.0, 72.0, 74.0], "ofa a_b": [71.0, 74.0], "ofa long_a_b": [90.0]}
    around = surroundings()
    for case, values in measured.items():
        for seed, value in enumerate(values):
            name = f"top1@{case} seed {seed}"
            row = Row(f"{BENCH}_seeds", name, value, "%", (seed,), None, None, "none", "0" * 16, **around)
            append([row], tmp_path)
    found = {row.metric: row for row in concluded(["a_b"], tmp_path)}
    assert {name: row.value for name, row in found.items() if "low" not in name and "high" not in name} == {
        "a_b@kd": 72.0,
        "a_b@ofa": 72.5,
        "gain_a_b@ofa against kd": 1.5,
    }
    assert found["gain_a_b@ofa against kd"].seeds == (0, 1)
    assert found["gain_low_a_b@ofa against kd"].value < 1.5 < found["gain_high_a_b@ofa against kd"].value
