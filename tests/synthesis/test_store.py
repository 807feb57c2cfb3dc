"""The store: torn at any byte, looked up without being held in memory."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import tracemalloc

import pytest

from mmkd.errors import DataError
from mmkd.synthesis.requests import Status, Usage
from mmkd.synthesis.store import Entry, Store


def entry(number: int, status: Status = Status.DONE, **fields) -> Entry:
    request = {"id": f"q{number}", "turns": [{"role": "user", "text": f"What {number}? é"}]}
    settings = {
        "text": f"answer {number}\n",
        "usage": Usage(10, 5, 0.25),
        "license": "MIT",
        "response_id": f"r{number}",
    }
    return Entry(f"key{number}", status, "tiny", request, **(settings | fields))


def filled(folder, count: int) -> Store:
    store = Store(folder)
    for number in range(count):
        store.append(entry(number))
    return store


def test_what_was_kept_is_found_again(tmp_path):
    filled(tmp_path, 3).close()
    with Store(tmp_path) as store:
        found = store.final("key1")
        assert found == entry(1, time=found.time)
        assert store.final("key3") is None
        assert [e.key for e in store.entries()] == ["key0", "key1", "key2"]
        assert store.spent() == Usage(30, 15, 0.75)
        assert store.spent("other") == Usage()
        assert store.owner("r2") == "key2"


def test_a_journal_torn_at_any_byte_loses_the_torn_line_only(tmp_path):
    filled(tmp_path / "whole", 3).close()
    whole = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[1], len(whole) + 1):
        folder = tmp_path / "torn"
        folder.mkdir(exist_ok=True)
        (folder / "journal.jsonl").write_bytes(whole[:cut])  # beside the index of the cut before
        with Store(folder) as store:
            kept = sum(end <= cut for end in ends)
            assert len(list(store.entries())) == kept
            assert store.spent().tokens == 15 * kept
            if cut % 50 == 0:
                store.append(entry(9))
                assert store.final("key9").text == "answer 9\n"
                assert all(json.loads(line) for line in store.journal.read_text().splitlines())


@pytest.mark.parametrize("damage", ["gone", "garbage", "of another journal", "half"])
def test_an_index_that_is_wrong_is_made_again(tmp_path, damage):
    filled(tmp_path, 5).close()
    index = tmp_path / "index.sqlite"
    if damage == "gone":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(os.urandom(20000))
    elif damage == "half":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    else:
        lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "journal.jsonl").write_bytes(b"".join(reversed(lines)) + lines[0].replace(b"key0", b"keyX"))
    with Store(tmp_path) as store:
        assert all(store.final(f"key{number}").text == f"answer {number}\n" for number in range(5))


def test_a_line_that_cannot_be_read_is_passed_over_and_counted(tmp_path):
    folder = tmp_path / "named like markup [" / "b]"
    filled(folder, 2).close()
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b"\x00\xff garbage\n[1]\n" + entry(7).line())
    with Store(folder) as store:
        assert store.broken == 2
        assert [e.key for e in store.entries()] == ["key0", "key1", "key7"]


def test_a_number_too_large_for_the_index_costs_its_line_and_not_the_store(tmp_path):
    filled(tmp_path, 2).close()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(entry(7, usage=Usage(10**30, 5)).line() + entry(8).line())
    with Store(tmp_path) as store:
        assert store.broken == 1
        assert [e.key for e in store.entries()] == ["key0", "key1", "key8"]
        assert store.spent() == Usage(30, 15, 0.75)


def test_only_final_entries_end_a_request(tmp_path):
    with Store(tmp_path) as store:
        for status in (Status.UNUSABLE, Status.UNANSWERED, Status.UNUSABLE):
            store.append(entry(0, status, kind="empty reply"))
            assert store.final("key0") is None
        store.append(entry(0, Status.REJECTED, kind="empty reply"))
        assert store.final("key0").status is Status.REJECTED
        assert store.counts() == {
            ("tiny", Status.UNUSABLE, "empty reply"): 2,
            ("tiny", Status.UNANSWERED, "empty reply"): 1,
            ("tiny", Status.REJECTED, "empty reply"): 1,
        }
        assert store.spent() == Usage(40, 20, 1.0)  # whatever became of it, it was paid
        assert len(list(store.entries(status=Status.UNUSABLE))) == 2


def test_two_processes_do_not_write_one_folder(tmp_path):
    with Store(tmp_path):
        code = f"from mmkd.synthesis.store import Store; Store({str(tmp_path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "is being written by another process" in other.stderr
    Store(tmp_path).close()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path):
    with filled(tmp_path, 2) as store:
        before, limits = store.journal.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))  # a line finds room for 20 bytes
        try:
            with pytest.raises(DataError, match=r"journal\.jsonl cannot be written.*Make room"):
                store.append(entry(5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.journal.read_bytes() == before
        store.append(entry(5))
        assert store.final("key5") is not None


def test_a_disk_too_full_for_the_index_mixes_up_no_answers_and_loses_none(tmp_path, monkeypatch):
    store = filled(tmp_path, 1)
    add, full = store._index.add, [True]

    def failing(*row) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        add(*row)

    monkeypatch.setattr(store._index, "add", failing)
    with pytest.raises(DataError, match=r"index\.sqlite cannot be written \(database or disk is full\).*run again"):
        store.append(entry(1))
    full.clear()
    store.append(entry(2))
    assert [store.final(f"key{number}").text for number in range(3)] == [f"answer {n}\n" for n in range(3)]
    full.append(True)
    for closing in (lambda: store.append(entry(3)), store.close):
        with pytest.raises(DataError, match="Make room"):
            closing()
    with Store(tmp_path) as again:
        assert [one.key for one in again.entries()] == [f"key{number}" for number in range(4)]


def test_a_line_damaged_behind_the_index_is_passed_over_and_told(tmp_path, capsys):
    filled(tmp_path, 3).close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[0] = b"#" * (len(lines[0]) - 1) + b"\n"
    lines[1] = lines[1].replace(b"key1", b"key2")
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with Store(tmp_path) as store:
        assert store.final("key0") is None
        assert store.final("key1") is None
        assert store.final("key2").text == "answer 2\n"
    assert "2 lines cannot be read" in " ".join(capsys.readouterr().err.split())


def test_reading_ten_thousand_entries_holds_a_page_of_places_in_memory(tmp_path):
    with filled(tmp_path, 10_000) as store:
        tracemalloc.start()
        assert sum(1 for _ in store.entries()) == 10_000
        assert store.final("key9999") is not None
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1_000_000
