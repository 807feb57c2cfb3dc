"""TAID in whole runs: t moves once a step whatever the accumulation, and goes on from a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ranks

from mmkd.errors import ConfigError

OBJECTIVES = [{"name": "cross_entropy"}, {"name": "taid", "alpha": 0.3, "momentum": 0.5, "chunk": 16}]
STAGE = {"steps": 4, "micro_batch_size": 4}
SAVED = {"save_every": 2, "keep_checkpoints": 9}


@pytest.mark.distributed
def test_t_in_a_run_is_that_of_one_plain_process_and_a_resumed_run_goes_on_with_it(config):
    settings = config(stage=STAGE, training=SAVED, objectives=OBJECTIVES)
    whole = ranks.run(settings, world=1)
    moved = [line["taid_t"] for line in ranks.lines(settings)]
    assert moved == sorted(moved)
    assert moved[1] == pytest.approx(0.4)  # the first step only takes the loss
    assert moved[-1] > 0.45
    assert ranks.one_plain_process(settings) == pytest.approx(whole, rel=1e-4)

    run = Path(settings["run"]["dir"])
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "distill" / "checkpoint-4")
    assert ranks.run(settings, world=1, resume=True) == pytest.approx(whole, rel=1e-6)
    assert [line["taid_t"] for line in ranks.lines(settings)] == moved


@pytest.mark.distributed
def test_a_teacher_of_another_tokenizer_stops_the_run_before_any_stage(config, teacher, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(teacher, folder)
    (folder / "model.safetensors").unlink()  # the refusal comes before its weights
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    first, second = ({"name": name, "steps": 1, "batch_size": 2} for name in ("plain", "distil"))
    stages = [first | {"objectives": [{"name": "cross_entropy"}]}, second]
    settings = config(teacher={"kind": "live", "model": str(folder)}, stages=stages)
    [error] = ranks.on_ranks(1, ranks.go, settings)
    assert isinstance(error, ConfigError)
    assert "is 'b' there and 'a' here" in str(error)
    assert "(forward_kl) compare both sides token by token" in str(error)
    assert "uld" in str(error)
