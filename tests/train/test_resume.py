"""A run that was stopped and goes on equals one that was not."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import yaml

from mmkd.checkpoints import latest_complete, mark_complete
from mmkd.config.load import dump_config, load_run
from mmkd.config.schema import Config
from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError, TrainingError
from mmkd.train.run import how_to_go_on, require_same_past


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
def test_a_source_that_grew_since_the_checkpoint_is_refused(stopped, records):
    settings, before = stopped(2, after=5), records.read_bytes()
    records.write_bytes(before + before.splitlines(keepends=True)[0])
    try:
        errors = ranks.on_ranks(2, ranks.go, settings, True)
    finally:
        records.write_bytes(before)
    for error in errors:
        assert isinstance(error, ConfigError), error
        assert re.match(r"data\.mixture\[0\] jsonl has 31 rows, and had 30 when .*checkpoint-5 was written", str(error))


def refused(settings: dict) -> str:
    written = (Path(settings["run"]["dir"]) / "config.yaml").read_text()
    [error] = ranks.on_ranks(1, ranks.go, settings, True)
    assert isinstance(error, ConfigError), error
    assert (Path(settings["run"]["dir"]) / "config.yaml").read_text() == written
    return str(error)


@pytest.mark.distributed
def test_a_run_that_goes_on_learns_saves_and_logs_as_its_config_says(finished, stopped):
    """Lowering the rate is what a run that met a loss that is no number is told."""
    settings = deepcopy(stopped(2, after=5))
    stage = settings["stages"][0]
    before = [line["learning_rate"] for line in ranks.lines(finished(2))]
    stage["learning_rate"] /= 10
    stage["learning_rates"] = {part: rate / 10 for part, rate in stage.get("learning_rates", {}).items()}
    settings["training"] |= {"save_every": 3, "keep_checkpoints": 9, "log_every": 2}
    ranks.run(settings, resume=True)
    lines = ranks.lines(settings)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20]
    after = {line["step"]: line["learning_rate"] for line in lines if line["step"] > 5}
    assert after == pytest.approx({step: before[step - 1] / 10 for step in after})
    assert {path.name for path in checkpoints(settings).iterdir()} == {
        f"checkpoint-{n}" for n in (5, 6, 9, 12, 15, 18, 20)
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight_decay": 0.3},
            r"weight_decay of stage distill is 0\.3, and was .*: stage distill has a checkpoint that was made with it",
        ),
        ({"trainable": ["voco"]}, r"trainable of stage distill is \['voco'\], and was"),
        ({"learning_rates": {"voco": 0.125}}, r"learning_rates of stage distill is \{'voco': 0\.125\}, and was"),
    ],
)
def test_what_the_optimiser_of_a_checkpoint_was_not_made_for_is_refused(stopped, changes, message):
    settings = deepcopy(stopped(2, after=5))
    settings["stages"][0] |= changes
    assert re.match(message, refused(settings))


def test_what_a_finished_or_begun_stage_was_trained_with_cannot_change(tmp_path):
    stages = [{"name": "first", "steps": 1}, {"name": "second", "steps": 1, "objectives": [{"name": "cross_entropy"}]}]
    whole = {"run": {"dir": str(tmp_path)}, "student": {"init": "x"}, "stages": stages, "teacher": {"model": "t"}}
    whole |= {"data": {"mixture": [{"source": "easyvqa"}]}, "objectives": [{"name": "forward_kl"}]}

    def now(**changes: Any) -> Config:
        return Config.model_validate(whole | changes)

    (tmp_path / "config.yaml").write_text(dump_config(now()))
    others = {
        "student.init": {"student": {"init": "y"}},
        "teacher.model": {"teacher": {"model": "u"}},
        "objectives": {"objectives": [{"name": "reverse_kl"}]},
        "data.max_length": {"data": whole["data"] | {"max_length": 99}},
    }
    for changes in others.values():
        require_same_past(now(**changes), tmp_path)  # nothing is trained yet
    (tmp_path / "checkpoints" / "first" / "checkpoint-4").mkdir(parents=True)
    mark_complete(tmp_path / "checkpoints" / "first" / "checkpoint-4")
    with pytest.raises(ConfigError, match=r"student\.init is y, and was x in .*: stage first has a checkpoint"):
        require_same_past(now(**others["student.init"]), tmp_path)
    require_same_past(now(**others["teacher.model"]), tmp_path)
    require_same_past(now(student={"init": "x", "attention": "eager"}), tmp_path)
    (tmp_path / "stages" / "first").mkdir(parents=True)
    mark_complete(tmp_path / "stages" / "first")
    for path, changes in others.items():
        with pytest.raises(ConfigError, match=rf"^{re.escape(path)} is .*: stage first is finished"):
            require_same_past(now(**changes), tmp_path)
    require_same_past(now(), tmp_path)
    older = yaml.safe_load(dump_config(now()))
    del older["data"]["rationales"], older["student"]["voco"], older["teacher"]["kind"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    require_same_past(now(), tmp_path)  # of an mmkd that did not know them


def test_a_begun_classifier_keeps_its_optimiser(tmp_path):
    def now(*changes: str) -> VisionConfig:
        return load_run("vision/digits", [f"run.dir={tmp_path}", *changes])

    (tmp_path / "config.yaml").write_text(dump_config(now()))
    (tmp_path / "checkpoints" / "distill" / "checkpoint-4").mkdir(parents=True)
    mark_complete(tmp_path / "checkpoints" / "distill" / "checkpoint-4")
    for change in ("recipe.weight_decay=0.5", "recipe.optimizer=sgd", "recipe.average=0.9"):
        with pytest.raises(ConfigError, match=f"^{change[7:].partition('=')[0]} of stage distill is .* checkpoint"):
            require_same_past(now(change), tmp_path)
    require_same_past(now("recipe.learning_rate=0.01"), tmp_path)


@pytest.mark.distributed
def test_a_finished_run_does_not_say_that_it_was_trained_otherwise(finished):
    settings = deepcopy(finished(2))
    first = settings["stages"][0]
    assert "is finished, with the stages distill: --resume adds none." in refused(
        settings | {"stages": [first, {**first, "name": "more"}]}
    )
    assert re.match(r"steps of stage distill is 40, and was 20 in .*: stage distill is finished", refused(
        settings | {"stages": [{**first, "steps": 40}]}
    ))  # fmt: skip


def test_a_run_between_two_stages_says_which_model_it_goes_on_from(tmp_path):
    stages = [{"name": name, "steps": 1} for name in ("first", "second")]
    run, data = {"dir": str(tmp_path)}, {"mixture": [{"source": "easyvqa"}]}
    config = Config.model_validate({"run": run, "student": {"init": "x"}, "data": data, "stages": stages})
    assert how_to_go_on(config).startswith("No checkpoint is whole yet")
    for folder in (tmp_path / "checkpoints" / "first" / "checkpoint-4", tmp_path / "stages" / "first"):
        folder.mkdir(parents=True)
        mark_complete(folder)
    assert how_to_go_on(config) == f"{tmp_path / 'stages' / 'first'} is whole: --resume goes on from it."


@pytest.mark.distributed
def test_a_run_folder_that_cannot_be_made_is_named(finished, tmp_path):
    (tmp_path / "file").touch()
    settings = finished(2) | {"run": finished(2)["run"] | {"dir": str(tmp_path / "file" / "run")}}
    [error] = ranks.on_ranks(1, ranks.go, settings)
    assert isinstance(error, ConfigError)
    assert str(error) == f"run.dir {tmp_path / 'file' / 'run'} cannot be made: Not a directory."


@pytest.mark.distributed
def test_another_number_of_ranks_is_refused(stopped):
    [error] = ranks.on_ranks(1, ranks.go, stopped(2, after=5), True)
    assert isinstance(error, TrainingError)
    assert "written by 2 ranks, and here are 1: start 2." in str(error)
