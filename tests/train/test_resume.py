"""A run that was stopped and goes on equals one that was not."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import ranks
import torch

from mmkd.checkpoints import latest_complete, mark_complete
from mmkd.errors import ConfigError, TrainingError


def checkpoints(settings: dict) -> Path:
    return Path(settings["run"]["dir"]) / "checkpoints" / "distill"


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(finished, stopped, zero):
    whole, settings = ranks.losses(finished(zero)), stopped(zero, after=5)
    assert ranks.run(settings, resume=True) == pytest.approx(whole, rel=1e-6)
    first, second = ranks.lines(finished(zero)), ranks.lines(settings)
    assert [line["step"] for line in second] == list(range(1, 21))  # none twice, though two were already written
    assert [line["learning_rate"] for line in second] == [line["learning_rate"] for line in first]
    models = [Path(s["run"]["dir"]) / "model" / "model.safetensors" for s in (finished(zero), settings)]
    assert models[0].read_bytes() == models[1].read_bytes()


@pytest.mark.distributed
def test_broken_checkpoints_are_passed_over_and_leave_with_the_next_whole_one(finished, stopped):
    settings = stopped(2, after=10)
    folder = checkpoints(settings)
    # As after a kill while rank 1 was writing: DeepSpeed's `latest` names the tag, a file of it is cut, no marker.
    (folder / "checkpoint-10" / "COMPLETE.json").unlink()
    states = sorted((folder / "checkpoint-10").rglob("*optim_states.pt"))
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    assert (folder / "checkpoint-10" / "latest").read_text() == "global_step10"
    # As after a machine lost power: a marker, and a file shorter than it says.
    shutil.copytree(folder / "checkpoint-5", folder / "checkpoint-13")
    mark_complete(folder / "checkpoint-13")
    cut = next((folder / "checkpoint-13").rglob("*model_states.pt"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert latest_complete(folder) == folder / "checkpoint-5"
    assert ranks.run(settings, resume=True) == pytest.approx(ranks.losses(finished(2)), rel=1e-6)
    assert {path.name for path in folder.iterdir()} == {f"checkpoint-{n}" for n in (5, 10, 15, 20)}


@pytest.mark.distributed
def test_a_run_killed_during_export_only_exports(finished, stopped):
    settings = stopped(2, after=20)
    assert ranks.run(settings, resume=True) == ranks.losses(finished(2))
    models = [Path(s["run"]["dir"]) / "model" / "model.safetensors" for s in (finished(2), settings)]
    assert models[0].read_bytes() == models[1].read_bytes()


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [2, 3])
def test_a_checkpoint_holds_nothing_of_the_frozen_tower_or_the_teacher(finished, zero):
    state = {}
    for path in (checkpoints(finished(zero)) / "checkpoint-20").rglob("*model_states.pt"):
        state |= torch.load(path, weights_only=False)["module"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    tower = [name for name in state if "vision_tower" in name and not name.endswith(statistics)]
    assert not tower
    assert all(name.startswith("student.") for name in state)
    assert any(name.startswith("student.projector") for name in state)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("run", {"seed": 4}, r"run\.seed is 4, and the run in .* began with 3: going on, it would skip rows"),
        ("data", {"packing": True}, r"data\.packing is True, and the run in .* began with False"),
        ("data", {"mixture": [{"source": "easyvqa"}]}, r"data\.mixture is .*easyvqa.*, and the run in .* began with"),
        ("stage", {"batch_size": 4}, "batch_size of stage distill is 4, and the run in .* began with 8"),
    ],
)
def test_what_would_read_other_rows_is_refused(stopped, section, changes, message):
    settings = deepcopy(stopped(2, after=5))
    changed = settings["stages"][0] if section == "stage" else settings[section]
    changed |= changes
    written = (Path(settings["run"]["dir"]) / "config.yaml").read_text()
    [error] = ranks.on_ranks(1, ranks.go, settings, True)
    assert isinstance(error, ConfigError)
    assert re.match(message, str(error))
    assert (Path(settings["run"]["dir"]) / "config.yaml").read_text() == written


@pytest.mark.distributed
def test_another_number_of_ranks_is_refused(stopped):
    [error] = ranks.on_ranks(1, ranks.go, stopped(2, after=5), True)
    assert isinstance(error, TrainingError)
    assert "written by 2 ranks, and here are 1: start 2." in str(error)
