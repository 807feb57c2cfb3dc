"""Trainable heads of objectives: made where widths are known, trained, checkpointed, and never exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors import safe_open

from mmkd.compose import load
from mmkd.config.schema import StageSection, TeacherSection
from mmkd.errors import ConfigError
from mmkd.models.attention_capture import capture_name
from mmkd.objectives import AttentionRelations, CrossEntropy, HiddenStates, Objective, OfaLogits
from mmkd.teachers.live import build_teacher
from mmkd.train.optimizer import parameter_groups
from mmkd.train.task import DistillTask

HEADS = {f"objectives.{name}" for name in ("1.heads.0.weight", "1.heads.1.weight", "2.heads.1.weight")}


def task_of(student: Path, teacher: TeacherSection, *objectives: Objective) -> DistillTask:
    torch.manual_seed(0)
    model = load(student).model
    model.set_attn_implementation(capture_name("sdpa"))
    made = build_teacher(teacher, torch.float32, "sdpa", torch.device("cpu"))
    return DistillTask(model, [(objective, 1.0) for objective in objectives], made)


@pytest.fixture
def task(student, wide_teacher) -> DistillTask:
    """A student of width 32 and two layers under a teacher of width 48 and three."""
    section = TeacherSection(kind="live", model=str(wide_teacher))
    hidden = HiddenStates(layers=[1])
    return task_of(student, section, CrossEntropy(), OfaLogits(), hidden, AttentionRelations(heads=2))


def batch(reads: list[int | None], answers: int = 3) -> dict[str, Any]:
    text = torch.tensor([[5, 6, 7, 8, 9]])
    labels = torch.full_like(text, -100)
    labels[:, 5 - answers :] = text[:, 5 - answers :]
    return {
        "input_ids": text,
        "labels": labels,
        "attention_mask": torch.ones_like(text),
        "position_ids": torch.arange(5)[None],
        "segment_ids": torch.zeros_like(text),
        "pixel_values": torch.ones(1, 3, 32, 32),
        "image_tiles": torch.tensor([1]),
        "image_rows": torch.tensor([0]),
        "image_segments": torch.tensor([0]),
        "normalizer": torch.tensor(float(max(answers, 1))),
        "reads": reads,
    }


def test_heads_have_the_widths_of_both_sides_and_stand_in_what_is_trained_and_saved(task):
    named = {name: p for name, p in task.named_parameters() if name.startswith("objectives")}
    assert set(named) == HEADS
    assert all(p.shape == (48, 32) and p.requires_grad for p in named.values())
    assert set(task.state_dict()) >= HEADS


def test_heads_learn_at_the_stages_rate_whatever_the_parts_of_the_model_learn_at(task):
    task.student.requires_grad_(False)
    stage = StageSection(name="s", steps=1, learning_rate=3e-4, learning_rates={"language": 1e-5}, weight_decay=0.1)
    [group] = parameter_groups(task, stage)
    assert (len(group["params"]), group["lr"], group["weight_decay"]) == (3, 3e-4, 0.1)


@pytest.mark.parametrize("reads", [[None], [4], [None, 2]])
def test_a_step_gives_every_head_and_layer_a_gradient_and_the_teacher_none(task, reads):
    task(batch(reads)).backward()
    for name, parameter in task.named_parameters():
        if name in HEADS or "language_model.model.layers" in name:
            assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.model.parameters())
    assert not any("teacher" in name for name in task.state_dict())
    assert {"ofa", "hidden_mse", "relations"} <= set(task.report)


def test_a_batch_without_answers_still_gives_every_head_a_gradient_of_zero(task):
    task(batch([4], answers=0)).backward()
    for name, parameter in task.named_parameters():
        if name in HEADS:
            assert parameter.grad.abs().max() == 0


def test_a_checkpoint_without_the_heads_is_refused(task):
    state = {name: tensor for name, tensor in task.state_dict().items() if name not in HEADS}
    with pytest.raises(Exception, match="3 parameters are missing"):
        task.load_state_dict(state)


def test_a_shared_teacher_serves_hidden_states_and_relations_without_any_head_but_not_ofa(student):
    shared = TeacherSection(kind="shared")
    task = task_of(student, shared, HiddenStates(), AttentionRelations())
    assert not [name for name, _ in task.named_parameters() if name.startswith("objectives")]
    loss = task(batch([None]))  # the same pass as the teacher's
    assert abs(loss.item()) < 1e-8
    assert task(batch([1])) > 1e-4
    with pytest.raises(ConfigError, match=re.escape("teacher.kind shared has no frozen norm and head of its own")):
        task_of(student, shared, OfaLogits())


OBJECTIVES = [
    {"name": "cross_entropy"},
    {"name": "ofa_logits", "weight": 0.5, "chunk": 8},
    {"name": "hidden_states"},
    {"name": "attention_relations", "heads": 2},
]


@pytest.mark.distributed
def test_heads_train_under_zero_3_go_on_from_a_checkpoint_and_are_not_in_the_exported_file(
    config, student, wide_teacher
):
    sections = {"objectives": OBJECTIVES, "teacher": {"kind": "live", "model": str(wide_teacher)}}
    options = {"stage": {"steps": 4}, "training": {"save_every": 2}}
    expected = ranks.run(config("alone", zero=1, **options, **sections), world=1)
    settings = config("sharded", zero=3, **options, **sections)
    assert ranks.run(settings) == pytest.approx(expected, rel=1e-4)

    run = Path(settings["run"]["dir"])
    with safe_open(run / "model" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names <= set(load(student).model.state_dict())

    (run / "model").rename(run / "model-of-before")
    last = run / "checkpoints" / "distill" / "checkpoint-4"
    last.rename(last.with_name("was-4"))
    assert ranks.run(settings, resume=True) == pytest.approx(expected, rel=1e-4)
    assert (run / "model").exists()  # steps 3 and 4 ran again


@pytest.mark.distributed
def test_a_stage_that_asks_no_teacher_loads_none(config):
    """As one that aligns before another distils: its ranks need not hold the teacher."""
    settings = config(teacher={"kind": "live", "model": "not-there-yet"}, objectives=[{"name": "cross_entropy"}])
    assert ranks.run(settings, world=1)
