"""What a cache gives to a training step, against the live teacher it was filled from, in one process."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from mmkd.compose import compose
from mmkd.config.schema import Config, SourceSection
from mmkd.data.loader import build_loader
from mmkd.errors import ConfigError
from mmkd.objectives import build
from mmkd.objectives.sparse import SparseTargets
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.calibration import read_calibration, recalibrated
from mmkd.teachers.checks import check_teacher
from mmkd.teachers.live import build_teacher
from mmkd.teachers.logit_store import LogitStore, read_manifest, shard_path
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


@pytest.fixture
def files(records, many_records, tmp_path) -> Path:
    """Rows to train on and to validate with, `records.jsonl` each, with their images, to be edited."""
    shutil.copytree(records.parent, tmp_path / "files/train")
    shutil.copytree(many_records.parent, tmp_path / "files/held_out")
    return tmp_path / "files"


@pytest.fixture
def on_files(cached, files):
    """As `cached`, of those files; with two objectives that every store serves."""

    def build_config(name: str = "store", **options: Any) -> Config:
        settings = cached(name, **{"k": 5} | options)
        settings.data.mixture = [mixture(files / "train")]
        settings.objectives = [one for one in settings.objectives if one.name != "hidden_states"]
        return settings

    return build_config


def mixture(folder: Path) -> SourceSection:
    return SourceSection(source="jsonl", path=str(folder / "records.jsonl"))  # pyright: ignore


def edit(folder: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a row of a file where it stands."""
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    change(rows[number])
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_question(row: dict[str, Any]) -> None:
    row["turns"][0]["text"] = "what was it before?"


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("shard-*")}


def test_a_question_edited_in_place_is_named_at_the_start_and_its_shard_alone_is_asked_again(on_files, files, tmp_path):
    settings, store = on_files(), tmp_path / "store"
    filled(settings)
    before, times = shards(store), {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*")}
    assert len(before) == 4
    edit(files / "train", 9, other_question)
    with pytest.raises(ConfigError, match=r"before data.mixture was edited: the text of 1 of 30 rows .* the first is "
                       r"data\.mixture\[0\] jsonl, row 9: record 'r9'"):  # fmt: skip
        check_teacher(settings)
    said = filled(settings)
    assert "rows of 1 of 4 shards were edited after they were filled" in said[0]
    assert "8 of 30 rows to ask" in said[1]
    kept = [path.name for path in store.glob("shard-*") if path.stat().st_mtime_ns == times[path.name]]
    assert sorted(kept) == sorted(set(before) - {"shard-000001.safetensors"})
    check_teacher(settings)
    fresh = on_files("fresh")
    filled(fresh)
    assert shards(store) == shards(tmp_path / "fresh")
    assert shards(store) != before
    assert len(filled(settings)) == 1  # nothing left to ask


def test_an_image_edited_in_place_is_asked_about_again_and_one_that_is_away_costs_nothing(on_files, files, tmp_path):
    image, other = files / "train/1-0.png", files / "train/9-0.png"
    settings, store = on_files(), tmp_path / "store"
    image.rename(files / "away")
    assert filled(settings)[-1].endswith("; set aside: 1 image missing")
    without = shards(store)
    (files / "away").rename(image)
    said = filled(settings)
    assert "rows of 1 of 4 shards were edited" in said[0]  # it is there now
    assert "set aside" not in said[-1]
    whole = shards(store)
    assert [name for name in whole if whole[name] != without[name]] == ["shard-000000.safetensors"]
    other.rename(files / "away")
    assert len(filled(settings)) == 1
    assert shards(store) == whole
    shutil.copy(image, other)
    check_teacher(settings)  # images are not read at the start
    filled(settings)
    assert [name for name, data in shards(store).items() if data != whole[name]] == ["shard-000001.safetensors"]
    step(settings)


def test_c_is_chosen_anew_where_validation_rows_were_replaced_in_place(on_files, files, tmp_path):
    """By rows of the same number in a file of the same name."""
    settings = on_files(validation=[mixture(files / "held_out")])
    filled(settings)
    check_teacher(settings)
    first = read_calibration(tmp_path / "store")
    for number in range(72):
        edit(files / "held_out", number, lambda row: row["turns"][-1].update(text="a round red thing"))
    with pytest.raises(ConfigError, match=r"before teacher.validation was edited: the text of 72 of 72 rows"):
        check_teacher(settings)
    filled(settings)
    check_teacher(settings)
    fresh = on_files("fresh", validation=[mixture(files / "held_out")])
    filled(fresh)
    found = read_calibration(tmp_path / "store")
    assert found == read_calibration(tmp_path / "fresh")
    assert (found.ece_before, found.tokens) != (first.ece_before, first.tokens)


def test_rows_put_in_another_order_need_nothing_and_rows_put_in_are_named_by_both(on_files, files):
    settings = on_files()
    filled(settings)
    file = files / "train/records.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[::-1]) + "\n")
    check_teacher(settings)
    file.write_text("\n".join([*lines, lines[0].replace("what is", "what was")]) + "\n")
    with pytest.raises(ConfigError, match=r"the text of 1 of 31 rows .* row 30: record 'r0'"):
        check_teacher(settings)
    with pytest.raises(ConfigError, match=r"was begun with other settings: rows \(30 there, 31 here\)"):
        filled(settings)


def test_a_store_of_before_rows_were_kept_is_read_and_not_filled_on(on_files, files, tmp_path):
    settings, store = on_files(), tmp_path / "store"
    filled(settings)
    (store / "manifest.json").write_text(read_manifest(store).model_copy(update={"format": 1}).model_dump_json())
    for number in range(4):
        arrays = load_file(shard_path(store, number))
        del arrays["rows"]
        save_file(arrays, shard_path(store, number))
    edit(files / "train", 9, other_question)
    check_teacher(settings)
    assert len(LogitStore(store)) == 30
    with pytest.raises(ConfigError, match=r"other settings: format, which before 2 kept nothing of the rows \(1 there"):
        filled(settings)


def test_defaults_count_where_the_config_says_who_is_asked_and_else_the_store_does(on_files):
    filled(on_files())
    settings = on_files()
    settings.teacher = type(settings.teacher)(**settings.teacher.model_dump(exclude={"k"}))
    with pytest.raises(ConfigError, match=r"something else: k \(top-k or draws\) \(5 there, 64 here\)"):
        check_teacher(settings)
    settings.teacher.model = None
    check_teacher(settings)
