"""What a cache gives to a training step, against the live teacher it was filled from, in one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.compose import compose
from mmkd.config.schema import Config
from mmkd.data.loader import build_loader
from mmkd.errors import ConfigError
from mmkd.objectives import build
from mmkd.objectives.sparse import SparseTargets
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.calibration import read_calibration, recalibrated
from mmkd.teachers.checks import check_teacher
from mmkd.teachers.live import build_teacher
from mmkd.teachers.logit_store import LogitStore
from mmkd.train.cache import cache_teacher
from mmkd.train.task import DistillTask

VOCABULARY = 259  # of the tiny models: bytes and three special tokens
OBJECTIVES = [{"name": "cross_entropy"}, {"name": "hidden_states", "weight": 0.5}, {"name": "forward_kl"}]


@pytest.fixture
def cached(config, tmp_path, teacher):
    def build_config(name: str = "store", **options: Any) -> Config:
        section = {"kind": "cached", "model": str(teacher), "store": str(tmp_path / name), "dtype": "float32"}
        return Config(**config(teacher=section | options, objectives=OBJECTIVES))

    return build_config


def filled(settings: Config) -> list[str]:
    said: list[str] = []
    cache_teacher(settings, 4, 8, False, said.append)
    return said


def step(settings: Config) -> tuple[torch.Tensor, dict[str, torch.Tensor], DistillTask, Any]:
    """Loss and gradients of one batch, the task and what its teacher said."""
    torch.manual_seed(0)
    composed = compose(settings.student)
    teacher = build_teacher(settings.teacher, torch.float32, "sdpa", torch.device("cpu"))
    torch.manual_seed(1)  # heads alike
    task = DistillTask(composed.model, [(build(o), o.weight) for o in settings.objectives], teacher)
    loader = build_loader(
        settings.data,
        composed.processor,
        seed=0,
        batch_size=8,
        micro_batch_size=8,
        rank=0,
        world_size=1,
        start_step=0,
        rejected=Path(settings.run.dir).parent / "rejected.jsonl",
        teacher_rows=teacher.store if isinstance(teacher, CachedTeacher) else None,
    )
    batch = next(iter(loader)) | {"normalizer": 10.0, "reads": [None]}
    loss = task.train()(batch)
    loss.backward()
    gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, task, batch


def test_hidden_states_from_the_cache_are_the_live_teachers_in_loss_and_gradient(cached, tmp_path, teacher):
    with pytest.raises(ConfigError, match=r"teacher.hidden_layers names 99; allowed: 0\.\.(\d+)\.") as caught:
        filled(cached(hidden_layers=[99]))
    layers = int(re.findall(r"0\.\.(\d+)\.", str(caught.value))[0]) + 1
    settings = cached("whole", k=VOCABULARY, hidden_layers=list(range(layers)))
    said = filled(settings)
    width = LogitStore(tmp_path / "whole").manifest.width
    assert f"and {layers} hidden states of {width} each: {VOCABULARY * 6 + 12 + layers * width * 4:,} bytes" in said[0]
    check_teacher(settings)
    live = settings.model_copy(deep=True)
    live.teacher = type(live.teacher)(kind="live", model=str(teacher))
    (loss, gradients, task, _), (expected, wanted, _, _) = step(settings), step(live)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5)
    assert any("hidden_mse" in name for name in task.report)

    few = cached("few", k=3, hidden_layers=[0])
    filled(few)
    with pytest.raises(ConfigError, match=r"keeps 0: .* missing. Fill a store with teacher.hidden_layers: \["):
        step(few)


def test_c_is_chosen_on_validation_rows_reported_kept_and_used(cached, many_records, tmp_path):
    settings = cached(k=5, validation=[{"source": "jsonl", "path": str(many_records)}])
    settings.objectives = [one for one in settings.objectives if one.name != "hidden_states"]
    said = filled(settings)
    told = r"calibration error on [\d,]+ validation tokens: \d+\.\d\d % as it is, \d+\.\d\d % with c = [\d.]+"
    assert re.search(told, said[-1])
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store/validation").glob("shard-*")}
    assert len(shards) > 1
    assert filled(settings)[-1] == said[-1]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/validation").glob("shard-*")} == shards
    check_teacher(settings)
    c = read_calibration(tmp_path / "store").c

    sharp, _, task, batch = step(settings)
    found = task.teacher.outputs(None, batch, type("A", (), {"answer_ids": batch["teacher_rows"]["best"]}), None)
    kept = batch["teacher_rows"]["log_probs"]
    assert isinstance(found, SparseTargets)
    assert found.tail is None
    torch.testing.assert_close(found.log_probs, recalibrated(kept, c), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(kept)))
    plain = settings.model_copy(deep=True)
    plain.teacher.validation = None
    check_teacher(plain)  # the same store, as it is
    assert float(sharp) != pytest.approx(float(step(plain)[0]), rel=1e-3)
    (tmp_path / "store" / "calibration.json").unlink()
    with pytest.raises(ConfigError, match=r"has no calibration.json"):
        check_teacher(settings)
