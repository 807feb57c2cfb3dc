"""Whole runs under a teacher of another tokenizer, template and image size."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks

from mmkd.errors import ConfigError

OBJECTIVES = [{"name": "cross_entropy", "weight": 0.5}, {"name": "uld", "chunk": 8}]
STAGE = {"steps": 8, "micro_batch_size": 2}


@pytest.fixture
def settings(config, foreign_teacher):
    def build(name="run", zero=2, objectives=OBJECTIVES, **data):
        made = config(name, zero=zero, stage=STAGE, objectives=objectives)
        made["teacher"] = {"kind": "live", "model": str(foreign_teacher)}
        made["data"] |= data
        return made

    return build


@pytest.mark.distributed
@pytest.mark.parametrize(("zero", "packing"), [(2, False), (3, True)])
def test_two_ranks_learn_what_one_plain_process_learns(settings, zero, packing):
    plain = ranks.one_plain_process(settings("plain"))
    whole = settings("whole", zero, packing=packing)
    if packing:
        whole["stages"][0]["micro_batch_size"] = 4
    assert ranks.run(whole) == pytest.approx(plain, rel=1e-4)
    lines = ranks.lines(whole)
    assert lines[-1]["uld"] < lines[0]["uld"]
    assert 0 < lines[0]["uld_spans"] < 1
    assert lines[0]["uld_kl"] > 0 < lines[0]["uld_sorted"]
    model = Path(whole["run"]["dir"]) / "model" / "model.safetensors"
    from safetensors import safe_open

    with safe_open(model, "pt") as file:
        assert not [name for name in file.keys() if "shared_ids" in name or "teacher" in name]  # noqa: SIM118


@pytest.mark.distributed
def test_it_is_refused_beside_an_objective_that_has_the_teacher_read_the_students_tokens(settings):
    both = settings(objectives=[*OBJECTIVES, {"name": "forward_kl"}])
    [error] = ranks.on_ranks(1, ranks.go, both)
    assert isinstance(error, ConfigError)
    assert "uld has the teacher read its own tokens, forward_kl the student's" in str(error)
    alone = settings("alone", objectives=[{"name": "hidden_states"}])
    [error] = ranks.on_ranks(1, ranks.go, alone)
    assert isinstance(error, ConfigError)
    assert "(hidden_states) compare both sides token by token" in str(error)
    assert "Use uld in their place" in str(error)
