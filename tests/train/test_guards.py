"""Guards against what DeepSpeed and the Trainer get silently wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ranks
import torch

from mmkd.checkpoints import MARKER, latest_complete, mark_complete
from mmkd.config.load import dump_config
from mmkd.config.schema import Config, DeepspeedSection, StageSection, TrainingSection
from mmkd.errors import ConfigError
from mmkd.train.deepspeed import as_saved, deepspeed_config, make_safe, prepare_launch
from mmkd.train.run import plan_batches, train, with_precision
from mmkd.train.trainer import draw_reads


def checkpoint(run, step: int, complete: bool = True):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"x" * 100)
    if complete:
        mark_complete(folder)
    return folder


def test_a_half_written_checkpoint_is_never_taken_for_whole(tmp_path):
    whole = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10, complete=False)
    assert latest_complete(tmp_path) == whole


def test_a_checkpoint_that_lost_bytes_after_its_marker_is_not_whole(tmp_path):
    whole, cut = checkpoint(tmp_path, 9), checkpoint(tmp_path, 100)
    assert latest_complete(tmp_path) == cut
    (cut / "weights.bin").write_bytes(b"x" * 99)
    assert latest_complete(tmp_path) == whole


def test_a_broken_marker_is_not_whole(tmp_path):
    (checkpoint(tmp_path, 1) / MARKER).write_text("{")
    assert latest_complete(tmp_path) is None


def test_clipping_is_what_the_config_says_and_not_deepspeeds_default():
    stage = StageSection(name="s", steps=1, gradient_clipping=0.0)
    config = deepspeed_config(DeepspeedSection(stage=2), stage, TrainingSection(precision="fp32"), 1, 1)
    assert config["gradient_clipping"] == 0.0


def test_no_operator_is_compiled_when_ranks_meet(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    assert prepare_launch("auto") == (0, 1)
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None  # or a compiler runs for a minute at the first start


def test_training_on_the_cpu_is_on_the_cpu_where_there_is_a_gpu_too(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("a GPU was chosen"))
    prepare_launch("cpu")
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_stage_0_with_bf16_is_refused():
    with pytest.raises(ConfigError, match="stage 0"):
        deepspeed_config(
            DeepspeedSection(stage=0), StageSection(name="s", steps=1), TrainingSection(precision="bf16"), 1, 1
        )


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_is_what_the_device_multiplies_and_a_resumed_run_keeps_its_own(
    config, monkeypatch, native, expected
):
    asked = Config(**config(training={"precision": "auto"}))
    monkeypatch.setattr("mmkd.train.run.native_bf16", lambda cpu: native)
    decided = with_precision(asked, resume=False)
    assert decided.training.precision == expected
    run = Path(asked.run.dir)
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(decided))
    monkeypatch.setattr("mmkd.train.run.native_bf16", lambda cpu: not native)
    assert with_precision(asked, resume=True).training.precision == expected
    fixed = Config(**config(training={"precision": "bf16"}))
    assert with_precision(fixed, resume=True).training.precision == "bf16"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = config(training={"device": "cuda", "precision": "bf16"})
    with pytest.raises(ConfigError, match=r"training\.device is cuda, and torch .* sees no CUDA device here"):
        train(Config(**settings))
    assert not Path(settings["run"]["dir"]).exists()


def minutes_waited_for(settings, given):
    """For which ranks of a run wait for each other, with DEEPSPEED_TIMEOUT as given."""
    os.environ |= {} if given is None else {"DEEPSPEED_TIMEOUT": given}
    ranks.go(settings)
    group = torch.distributed.group.WORLD
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60


@pytest.mark.distributed
@pytest.mark.parametrize(("given", "minutes"), [(None, 120), ("7", 7)])
def test_ranks_wait_for_a_slower_one(config, given, minutes):
    settings = config(stage={"steps": 1, "micro_batch_size": 4})
    assert ranks.on_ranks(1, ranks.call, __file__, "minutes_waited_for", settings, given) == [minutes]


def test_own_deepspeed_keys_are_merged_in_last():
    section = DeepspeedSection(stage=3, config={"zero_optimization": {"stage3_param_persistence_threshold": 0}})
    zero = deepspeed_config(section, StageSection(name="s", steps=1), TrainingSection(), 1, 1)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_param_persistence_threshold"] == 0


def test_parameters_that_cannot_be_broadcast_are_made_so():
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(2.0))
    module.weight = torch.nn.Parameter(torch.randn(3, 2).t(), requires_grad=False)
    module.tied = module.weight
    before = module.weight.detach().clone()
    make_safe(module)
    assert module.tied is module.weight
    assert module.scale.shape == (1,)
    saved = as_saved(module, {"scale": torch.tensor([2.0]), "weight": before})
    assert saved["scale"].shape == ()
    assert saved["weight"].shape == (2, 3)
    make_safe(module)  # once more, as a stage that follows does
    assert as_saved(module, {"scale": torch.tensor([2.0])})["scale"].shape == ()
    assert module.weight.is_contiguous()
    assert not module.weight.requires_grad
    torch.testing.assert_close(module.weight.detach(), before)


@pytest.mark.parametrize(("batch", "micro", "world"), [(7, None, 2), (8, 3, 2)])
def test_a_batch_that_ranks_cannot_share_is_refused(batch, micro, world):
    with pytest.raises(ConfigError, match="batch_size"):
        plan_batches(StageSection(name="s", steps=1, batch_size=batch, micro_batch_size=micro), world)


def test_read_counts_are_a_function_of_seed_and_step_and_cover_every_choice():
    stage = StageSection(name="s", steps=100, read=["full", 4, 1], reads=2)
    drawn = [tuple(draw_reads(stage, 0, step)) for step in range(100)]
    assert drawn == [tuple(draw_reads(stage, 0, step)) for step in range(100)]
    assert {count for reads in drawn for count in reads} == {None, 4, 1}
    assert all(len(set(reads)) == 2 for reads in drawn)


@pytest.mark.parametrize("progressive", [False, True])
def test_an_entry_that_is_never_drawn_ends_no_step(progressive):
    options = {"read": ["full", 8, 4], "read_weights": [1, 0, 1], "reads": 2, "progressive": progressive}
    stage = StageSection(name="s", steps=30, **options)
    assert {count for step in range(30) for count in draw_reads(stage, 0, step)} == {None, 4}


def test_a_progressive_schedule_starts_with_the_first_choice_and_reaches_the_last():
    stage = StageSection(name="s", steps=100, read=["full", 8, 1], progressive=True)
    assert {draw_reads(stage, 0, step)[0] for step in range(33)} == {None}
    assert 1 in {draw_reads(stage, 0, step)[0] for step in range(67, 100)}


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_finished_stage_leaves_nothing_in_memory(config, teacher, zero):
    """Student, optimiser and teacher of two stages need not fit beside each other."""
    settings = config("stages", zero=zero, stage={"steps": 2})
    first = settings["stages"][0]
    settings["stages"] = [first | {"name": name} for name in ("first", "second")]
    assert ranks.on_ranks(1, ranks.tasks_left, settings) == [[0, 0]]
