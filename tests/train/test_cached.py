"""A teacher that is asked once: filling its store, killed or on two ranks, and training on it without the teacher."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import yaml

from mmkd.config.schema import Config
from mmkd.errors import ConfigError, DataError
from mmkd.teachers.checks import check_filling, check_teacher
from mmkd.teachers.logit_store import LogitStore
from mmkd.train.cache import cache_teacher
from mmkd.train.checks import check_run

VOCABULARY = 259  # of the tiny models: bytes and three special tokens
STAGE = {"steps": 2, "micro_batch_size": 4}


@pytest.fixture
def cached(config, tmp_path, teacher) -> Callable[..., dict[str, Any]]:
    """`cached(name, k=.., **sections)`: a config whose teacher is cached in the folder `store`."""

    def build(name: str = "run", store: str = "store", **options: Any) -> dict[str, Any]:
        of_teacher = {"kind": "cached", "model": str(teacher), "store": str(tmp_path / store)}
        for field in ("k", "targets", "temperature", "dtype", "model", "hidden_layers", "validation"):
            if field in options:
                of_teacher[field] = options.pop(field)
        return config(name, **({"teacher": of_teacher, "stage": STAGE} | options))

    return build


def fill(settings: dict[str, Any], shard_rows: int = 2) -> list[str]:
    """One rank's part of filling, and what it said."""
    said: list[str] = []
    if not torch.distributed.is_initialized():  # `ranks` waits for all of them in the end
        torch.distributed.init_process_group("gloo")
    cache_teacher(Config.model_validate(settings), 4, shard_rows, False, said.append)
    return said


def filled(settings: dict[str, Any], world: int = 1) -> list[str]:
    results = ranks.on_ranks(world, ranks.call, __file__, "fill", settings)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results[0]


def without(settings: dict[str, Any]) -> dict[str, Any]:
    """The config as another machine would have it, which lacks the teacher."""
    return settings | {"teacher": settings["teacher"] | {"model": None}}


def contents(store: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store).glob("*") if path.name != "lock"}


def mmkd(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmkd", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def live_losses(config) -> list[float]:
    return ranks.run(config("live", stage=STAGE), world=1)


@pytest.mark.distributed
def test_from_the_command_line_a_run_on_the_cache_equals_one_with_the_live_teacher(
    cached, teacher, tmp_path, live_losses
):
    """With k the whole vocabulary. The teacher's weights are gone when training starts."""
    away = tmp_path / "teacher"
    shutil.copytree(teacher, away)
    settings = cached(model=str(away), k=VOCABULARY, dtype="float32")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out, err = (process := mmkd("cache", str(file), "--batch-size", "4")).communicate(timeout=200)
    assert process.returncode == 0, err
    first, last = out.splitlines()
    store = LogitStore(tmp_path / "store")
    estimated = re.search(r"30 of 30 rows to ask, about (\d+) answer tokens", first)
    assert estimated is not None
    assert int(estimated[1]) == pytest.approx(store.tokens, rel=0.2)
    assert "the top 259 of 259 ids each: 1,566 bytes a token" in first  # 259 * (2 + 4) + 12
    assert re.search(r"about \d+ s on 1 process$", first)
    assert f"{len(store)} different rows, {store.tokens:,} answer tokens" in last
    assert "30/30" in err  # progress
    shutil.rmtree(away)
    file.write_text(yaml.safe_dump(without(settings)))
    out, err = (process := mmkd("distill", str(file))).communicate(timeout=200)
    assert process.returncode == 0, err
    assert ranks.losses(settings) == pytest.approx(live_losses, rel=1e-5)


@pytest.mark.distributed
def test_two_ranks_train_on_it_in_packed_rows_as_one_does_with_the_live_teacher(cached, records, live_losses):
    settings = cached(k=VOCABULARY, dtype="float32")
    filled(settings)
    settings["data"] = settings["data"] | {"packing": True}
    assert ranks.run(settings, world=2) == pytest.approx(live_losses, rel=1e-4)
    numbers = ranks.lines(settings)[-1]
    assert {"kl", "ce", "teacher_nll", "teacher_accuracy", "agree"} <= numbers.keys()


def floats_of_batches(settings: dict[str, Any]) -> dict[str, str]:
    """The dtypes of the floats that the task gets, images and features aside."""
    from mmkd.train.run import train
    from mmkd.train.task import DistillTask

    found, forward = {}, DistillTask.forward

    def watched(self: Any, batch: dict[str, Any]) -> Any:
        for name, value in [*batch.items(), *batch["teacher_rows"].items()]:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and name != "pixel_values":
                found[name] = str(value.dtype)
        return forward(self, batch)

    DistillTask.forward = watched
    train(Config.model_validate(settings))
    return found


@pytest.mark.distributed
def test_in_bf16_what_it_said_and_what_losses_are_divided_by_stay_as_they_are(cached):
    """transformers would cast every float of a batch to the model's dtype."""
    settings = cached(k=9, dtype="float32", training={"precision": "bf16"})
    filled(settings)
    [found] = ranks.on_ranks(1, ranks.call, __file__, "floats_of_batches", settings)
    assert not isinstance(found, Exception), found
    assert {"normalizer", "log_probs", "tail"} <= found.keys()
    assert set(found.values()) == {"torch.float32"}


@pytest.mark.distributed
def test_a_few_ids_or_draws_in_half_precision_come_near_it_and_the_reports_of_the_teacher_stay_exact(
    cached, config, live_losses
):
    live = ranks.lines(config("live"))[0]
    for name, options in (("few", {"k": 200}), ("drawn", {"targets": "sample", "k": 100})):
        settings = cached(name, name, **options)
        filled(settings)
        found = ranks.run(settings, world=1)
        assert found == pytest.approx(live_losses, rel=0.05)
        line = ranks.lines(settings)[0]
        assert line["kl"] != pytest.approx(live["kl"], rel=1e-6)
        for number in ("teacher_nll", "teacher_accuracy", "agree"):
            assert line[number] == pytest.approx(live[number], rel=1e-3)
    drawn, few = (LogitStore(Path(settings["run"]["dir"]).parent / name) for name in ("drawn", "few"))
    assert drawn.bytes < few.bytes
    assert drawn.tokens == few.tokens


@pytest.mark.distributed
@pytest.mark.parametrize("targets", ["top_k", "sample"])
def test_killed_at_any_moment_and_gone_on_with_it_is_the_store_of_one_go_or_of_two_ranks(cached, tmp_path, targets):
    whole, pair, killed = (cached(name, name, targets=targets) for name in ("whole", "pair", "killed"))
    filled(whole)
    expected = contents(tmp_path / "whole")
    assert len(expected) == 16  # 15 shards and the manifest
    filled(pair, world=2)
    assert contents(tmp_path / "pair") == expected

    file, store = tmp_path / "config.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump(killed))
    command = ("cache", str(file), "--batch-size", "4", "--shard-rows", "2")
    process = mmkd(*command)
    end = time.monotonic() + 200
    while not list(store.glob("shard-*")) and time.monotonic() < end:
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (store / "shard-000014.safetensors.partial").write_bytes(b"half of it")  # as a kill while it is written leaves it
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*.safetensors")}
    assert len(before) < 15, "the kill came too late"
    assert process.returncode == -signal.SIGKILL
    said = filled(killed)
    assert contents(store) == expected
    assert all((store / name).stat().st_mtime_ns == then for name, then in before.items())  # not asked twice
    assert f"{30 - 2 * len(before)} of 30 rows to ask" in said[0]
    assert len(filled(killed)) == 1  # nothing left to ask


@pytest.mark.distributed
def test_an_estimate_writes_nothing_that_binds(cached, tmp_path):
    settings = cached(k=5)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out, err = (process := mmkd("cache", str(file), "--estimate")).communicate(timeout=200)
    assert process.returncode == 0, err
    assert "30 of 30 rows to ask" in out
    assert "28 bytes a token" in out
    assert contents(tmp_path / "store") == {}


@pytest.mark.distributed
def test_a_row_that_the_cache_lacks_stops_the_run_and_is_named(cached, many_records):
    settings = cached()
    filled(settings)
    settings["data"] = settings["data"] | {"mixture": [{"source": "jsonl", "path": str(many_records)}]}
    [error] = ranks.on_ranks(1, ranks.go, settings)
    assert isinstance(error, DataError)
    named = r"data.mixture\[0\] jsonl, row (\d+): record 'r\1': the teacher's cache .*/store has no answers for it"
    assert re.match(named, str(error))


@pytest.mark.distributed
def test_what_differs_is_named_before_anything_is_trained(cached, config, student, wide_teacher, tmp_path):
    settings = cached(k=5)
    filled(settings)
    other = settings | {"teacher": settings["teacher"] | {"model": str(wide_teacher)}}
    with pytest.raises(ConfigError, match=r"for something else: teacher \("):
        check_teacher(Config(**other))
    with pytest.raises(ConfigError, match=r"k \(top-k or draws\) \(5 there, 6 here\)"):
        check_teacher(Config(**settings | {"teacher": settings["teacher"] | {"k": 6}}))
    template = settings | {"student": settings["student"] | {"template": "plain"}}
    with pytest.raises(ConfigError, match=r"something else: template \("):  # before any weight is loaded
        check_run(Config(**template))
    [error] = ranks.on_ranks(1, ranks.go, template)
    assert isinstance(error, ConfigError)
    assert "something else: template (" in str(error)
    [again] = ranks.on_ranks(1, ranks.call, __file__, "fill", template)
    assert isinstance(again, ConfigError)
    assert "was begun with other settings: template (" in str(again)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ({"name": "reverse_kl"}, {}, "objectives: reverse_kl needs all of the teacher, and teacher.kind: cached keeps "
         "the top k ids of each distribution. Use forward_kl, or teacher.kind: live."),
        ({"name": "taid"}, {"targets": "sample"}, "taid needs all of the teacher, and teacher.kind: cached keeps ids "
         "drawn from each distribution"),
        ({"name": "hidden_states"}, {}, "hidden_states reads hidden states, and this cache keeps none."),
        ({"name": "ofa_logits"}, {"hidden_layers": [0]}, "ofa_logits needs all of the teacher"),
        ({"name": "voco_attention"}, {}, "voco_attention needs all of the teacher"),
        ({"name": "tower_features"}, {}, "tower_features compares the student's vision tower with the teacher's, and "
         "teacher.kind cached keeps nothing of one. Use teacher.kind: live."),
        ({"name": "forward_kl", "temperature": 2.0}, {}, "forward_kl has temperature 2, the teacher's cache 1."),
    ],
)  # fmt: skip
def test_objectives_that_a_cache_cannot_serve_are_refused_by_both_commands(cached, objective, options, message):
    good = cached(**options)
    bad = good | {"objectives": [{"name": "cross_entropy"}, objective]}
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_filling(Config(**bad))
    filled(good)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_teacher(Config(**bad))
    later = good | {"stages": [*good["stages"], good["stages"][0] | {"name": "late", "objectives": [objective]}]}
    with pytest.raises(ConfigError, match="stage late"):
        check_teacher(Config(**later))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "cached"}, "teacher.kind: cached needs teacher.store"),
        ({"kind": "cached", "store": "nowhere"}, "teacher.store nowhere holds no teacher's cache; fill it with mmkd"),
        ({"kind": "live", "model": "x", "store": "y"}, "teacher.store has no place beside kind: live"),
        ({"kind": "live", "model": "x", "k": 5}, "unknown fields k; beside kind: live"),
        ({"kind": "shared", "model": "x"}, "teacher.model has no place beside kind: shared"),
        ({"kind": "lives", "model": "x"}, "'lives' is not one of live, cached, shared"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(config, section, message):
    with pytest.raises(ConfigError, match=message):
        check_teacher(Config(**config(teacher=section)))


@pytest.mark.parametrize("section", [None, {"kind": "live", "model": "x"}, {"kind": "cached", "store": "x"}])
def test_a_config_that_cannot_fill_a_store_says_what_to_write(config, section):
    with pytest.raises(ConfigError, match=r"Write e\.g\. teacher: \{kind: cached, model: "):
        check_filling(Config(**config(teacher=section, objectives=[{"name": "cross_entropy"}])))


@pytest.mark.distributed
def test_hidden_states_from_the_cache_train_two_ranks_in_packed_rows_as_the_live_teacher_does(cached, config):
    objectives = [{"name": "cross_entropy"}, {"name": "hidden_states", "layers": [[-1, -1]]}, {"name": "forward_kl"}]
    live = ranks.run(config("live", stage=STAGE, objectives=objectives), world=1)
    settings = cached(k=VOCABULARY, dtype="float32", hidden_layers=[2], objectives=objectives)
    filled(settings)
    found = ranks.run(without(settings) | {"data": settings["data"] | {"packing": True}}, world=2)
    assert found == pytest.approx(live, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "sample"}, "recalibrates the top k at temperature 1, and the cache keeps sample"),
        ({"temperature": 2.0}, "recalibrates the top k at temperature 1, and the cache keeps top_k at 2"),
        ({"k": 1}, "how sharp the likeliest ids stand against each other, and teacher.k is 1"),
        ({}, r"teacher.validation\[0\] is in data.mixture too"),
    ],
)
def test_validation_that_says_nothing_is_refused(cached, records, options, message):
    settings = cached(objectives=[{"name": "cross_entropy"}], **options)
    settings["teacher"]["validation"] = settings["data"]["mixture"]
    with pytest.raises(ConfigError, match=message):
        check_filling(Config(**settings))
