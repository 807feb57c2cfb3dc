"""The store of a teacher's answers: whole or not at all, whatever was killed, and nobody else's."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmkd.errors import ConfigError, DataError
from mmkd.teachers.identity import Manifest
from mmkd.teachers.logit_store import (
    ROW_BYTES,
    LogitStore,
    missing_shards,
    open_for_filling,
    read_manifest,
    require_same,
    shard_path,
    write_shard,
)

VALUES = {
    "model": "runs/teacher", "teacher": "a" * 64, "quantize": None, "precision": "fp32", "image_processor": "b" * 16,
    "tokenizer": "c" * 64, "template": "d" * 64, "vocabulary": 100, "targets": "top_k", "k": 2, "temperature": 1.0,
    "proposal": 1.0, "dtype": "float16", "data": "e" * 64, "rows": 5, "shard_rows": 2,
}  # fmt: skip


def manifest(**changes) -> Manifest:
    return Manifest(**(VALUES | changes))


def key(number: int) -> bytes:
    return bytes([number]) * 32


def digests(numbers) -> list[bytes]:
    """Of rows, as `mmkd.teachers.edited` makes them."""
    return [bytes([200 + number]) * ROW_BYTES for number in numbers]


def answers(number: int, tokens: int = 3, k: int = 2):
    at = np.arange(tokens * k)
    return {
        "ids": ((at + number) % 100).astype(np.uint16),
        "log_probs": (-at - number).astype(np.float16),
        "counts": np.full(tokens, k, dtype=np.uint16),
        "tail": np.full(tokens, -number, dtype=np.float16),
        "answers": np.arange(tokens).astype(np.float16),
        "best": np.full(tokens, number, dtype=np.uint16),
    }


def fill(folder, kind=None, shards=(0, 1, 2)):
    open_for_filling(folder, kind or manifest())
    for shard in shards:
        numbers = [n for n in (2 * shard, 2 * shard + 1) if n < 5]
        write_shard(folder, shard, [(key(n), answers(n, tokens=n + 1)) for n in numbers], digests(numbers))
    return folder


def test_answers_come_back_as_they_were_put_also_in_a_loader_worker(tmp_path):
    store = LogitStore(fill(tmp_path / "s"))
    store.find(key(1), "")
    for reader in (store, pickle.loads(pickle.dumps(store))):  # noqa: S301
        for number in range(5):
            rows = reader.find(key(number), "")
            for name, array in answers(number, tokens=number + 1).items():
                assert rows[name].dtype == array.dtype
                assert np.array_equal(rows[name], array), (number, name)
    assert len(store) == 5
    assert store.tokens == 15


def test_a_row_that_is_not_there_is_named(tmp_path):
    store = LogitStore(fill(tmp_path / "s"))
    with pytest.raises(DataError, match=r"record 'r7': the teacher's cache .*/s has no answers for it"):
        store.find(key(9), "r7")


def test_a_shard_is_whole_or_missing_at_every_byte_of_its_writing(tmp_path):
    whole = fill(tmp_path / "whole")
    data = shard_path(whole, 1).read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        # Where a kill leaves it, and, worse, where a broken disk might: under its own name.
        shard_path(folder, 1).rename(folder / "shard-000001.safetensors.partial")
        (folder / "shard-000001.safetensors.partial").write_bytes(data[:length])
        assert missing_shards(folder, manifest()) == [1]
        with pytest.raises(ConfigError, match=r"is not filled: 1 of 3 shards are missing. Go on with mmkd cache"):
            LogitStore(folder)
        shard_path(folder, 1).write_bytes(data[:length])
        assert missing_shards(folder, manifest()) == [1], length
        with pytest.raises(DataError, match=r"shard-000001.safetensors is broken .*delete it and go on"):
            LogitStore(folder)
    fill(folder, shards=[1])
    assert not list(folder.glob("*.partial"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher": "f" * 64}, r"teacher \(aaaaaaaaaaaa.. there, ffffffffffff.. here\)"),
        ({"tokenizer": "f" * 64}, "tokenizer"),
        ({"template": "f" * 64}, "template"),
        ({"image_processor": "f" * 16}, "image processor"),
        ({"k": 3}, r"k \(top-k or draws\) \(2 there, 3 here\)"),
        ({"temperature": 2.0}, "temperature"),
        ({"targets": "sample"}, "targets"),
        ({"dtype": "float32"}, "dtype"),
        ({"precision": "bf16"}, "precision"),
        ({"quantize": "nf4"}, "quantize"),
        ({"vocabulary": 99}, "vocabulary"),
        ({"data": "f" * 64}, "data"),
        ({"rows": 6}, "rows"),
        ({"format": 1}, "format, which before 2 kept nothing of the rows"),
        ({"shard_rows": 3}, "rows of a shard"),
    ],
)
def test_a_store_of_something_else_is_refused_by_the_name_of_what_differs(tmp_path, changes, named):
    folder = fill(tmp_path / "s")
    with pytest.raises(ConfigError, match=f"was begun with other settings: {named}") as caught:
        open_for_filling(folder, manifest(**changes))
    assert str(caught.value).count(" there, ") == 1
    with pytest.raises(ConfigError, match=f"holds answers of runs/teacher for something else: {named}"):
        require_same(read_manifest(folder), folder, changes)


def test_another_name_of_the_same_teacher_is_no_difference(tmp_path):
    open_for_filling(fill(tmp_path / "s"), manifest(model="elsewhere"))


def test_a_folder_without_a_store_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="holds no teacher's cache; fill it with mmkd cache"):
        LogitStore(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps(VALUES | {"k": -1}), json.dumps(VALUES | {"x": 1})])
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays.update(ids=np.full_like(arrays["ids"], 100)),  # no such token
        lambda arrays: arrays.update(counts=arrays["counts"][::-1].copy() * 0 + 1),
        lambda arrays: arrays.update(tokens=arrays["tokens"] + 1),
        lambda arrays: arrays.update(keys=arrays["keys"][:1]),
        lambda arrays: arrays.pop("tail"),
        lambda arrays: arrays.pop("entries"),
        lambda arrays: arrays.update(rows=arrays["rows"][:1]),
        lambda arrays: arrays.pop("rows"),
    ],
)
def test_a_shard_that_contradicts_itself_is_an_error_and_gives_no_numbers(tmp_path, spoil):
    folder = fill(tmp_path / "s")
    arrays = load_file(shard_path(folder, 0))
    spoil(arrays)
    save_file(arrays, shard_path(folder, 0))
    with pytest.raises(DataError, match=r"shard-000000.safetensors is broken"):
        LogitStore(folder).find(key(0), "")


def test_a_shard_of_bad_rows_only_is_an_empty_one(tmp_path):
    folder = fill(tmp_path / "s", shards=[0, 1])
    write_shard(folder, 2, [], digests([4]))
    assert missing_shards(folder, manifest()) == []
    assert len(LogitStore(folder)) == 4


def test_hidden_states_lie_beside_the_answers_and_are_read_row_by_row(tmp_path):
    kind = manifest(hidden_layers=(1, 3), layers=4, width=6)
    open_for_filling(tmp_path / "s", kind)

    def rows(number):
        states = {f"hidden.{layer}": np.full((number + 1, 6), 10 * layer + number, np.float32) for layer in (1, 3)}
        return answers(number, number + 1) | states

    for shard, numbers in enumerate([(0, 1), (2, 3), (4,)]):
        write_shard(tmp_path / "s", shard, [(key(n), rows(n)) for n in numbers], digests(numbers))
    assert missing_shards(tmp_path / "s", kind) == []
    found = LogitStore(tmp_path / "s").find(key(3), "")
    assert found["hidden.1"].shape == (4, 6)
    assert (found["hidden.3"] == 33).all()
    narrow = load_file(shard_path(tmp_path / "s", 1))
    narrow["hidden.3"] = narrow["hidden.3"][:, :5].copy()
    save_file(narrow, shard_path(tmp_path / "s", 1))
    assert missing_shards(tmp_path / "s", kind) == [1]
