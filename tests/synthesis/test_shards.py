"""Journals of workers come into the one store once, whenever it is that somebody dies."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from mmkd.errors import DataError
from mmkd.synthesis import shards
from mmkd.synthesis.requests import Status, Usage
from mmkd.synthesis.shards import merge, merge_left, shard_of
from mmkd.synthesis.store import Entry, Store


def entry(key: str, text: str = "x", status: Status = Status.DONE) -> Entry:
    return Entry(key, status, "m", {"id": key}, text=text, usage=Usage(3, 2, 0.5))


@pytest.fixture
def store(tmp_path):
    """With one entry, and a shard of two others and a copy of it."""
    with Store(tmp_path) as store:
        old = entry("old", status=Status.UNUSABLE)
        store.append(old)
        with Store(shard_of(tmp_path, "0")) as shard:
            for one in (old, entry("a"), entry("b", "é")):
                shard.append(one)
        yield store


def test_a_shard_is_merged_and_gone_and_what_was_there_is_not_added_again(store, tmp_path):
    assert [one.key for one in merge(store, "0")] == ["a", "b"]
    assert [one.key for one in store.entries()] == ["old", "a", "b"]
    assert store.final("b").text == "é"
    assert store.spent() == Usage(9, 6, 1.5)
    assert not shard_of(tmp_path, "0").exists()
    assert list(merge(store, "0")) == []


def test_killed_while_it_merges_it_is_done_again_and_nothing_is_paid_twice(store, tmp_path):
    shutil.copytree(shard_of(tmp_path, "0"), tmp_path / "copy")
    merging = merge(store, "0")
    next(merging)  # killed here: one of two is in the store, and the shard is still there
    merging.close()
    assert shard_of(tmp_path, "0").exists()
    merge_left(store)
    shutil.copytree(tmp_path / "copy", shard_of(tmp_path, "0"))  # or here: both are, and the shard is still there
    merge_left(store)
    assert [one.key for one in store.entries()] == ["old", "a", "b"]
    assert store.spent() == Usage(9, 6, 1.5)


def test_what_a_kill_tore_is_passed_over(store, tmp_path):
    with (shard_of(tmp_path, "0") / "journal.jsonl").open("ab") as journal:
        journal.write(b"no entry\n" + entry("c").line()[:40])
    shard_of(tmp_path, "1").mkdir()  # its worker died before it had a journal
    merge_left(store)
    assert [one.key for one in store.entries()] == ["old", "a", "b"]
    assert not list((tmp_path / "shards").iterdir())


WRITER = """
import sys
from mmkd.synthesis.store import Store
with Store(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_shard_that_is_still_written_is_left_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "DYING_SECONDS", 0.05)
    shard = shard_of(tmp_path, "0")
    command = [sys.executable, "-c", WRITER, str(shard)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "open\n"
        with pytest.raises(DataError, match="still being written"):
            merge_left(store)
        worker.stdin.close()
    assert shard.exists()
