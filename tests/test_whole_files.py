"""Real limits of the system: a file may not grow beyond so many bytes, as on a disk that is full."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager

import pytest

from mmkd.errors import DataError
from mmkd.whole_files import append_whole, whole_lines, write_whole


@contextmanager
def room_for(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_text_and_bytes_are_counted_and_folders_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert write_whole(path, iter(["ü\n", b"\x00"])) == 2
    assert path.read_bytes() == "ü\n".encode() + b"\x00"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file_and_says_which_it_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_whole(path, ["old\n"])
    with room_for(100_000), pytest.raises(DataError, match=r"rows\.jsonl cannot be written .*Make room"):
        write_whole(path, ("x" * 1000 for _ in range(1000)))
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("bad row"), FileNotFoundError(2, "no image")])
def test_what_the_making_of_pieces_raises_goes_through(tmp_path, error):
    def pieces():
        yield "one\n"
        raise error

    path = tmp_path / "rows.jsonl"
    with pytest.raises(type(error)):
        write_whole(path, pieces())
    assert not path.exists()


def test_an_append_is_whole_or_the_file_is_as_before(tmp_path):
    path = tmp_path / "journal.jsonl"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    size = append_whole(handle, b"one\n", 0, path)
    with room_for(20), pytest.raises(DataError, match=r"journal\.jsonl cannot be written"):
        append_whole(handle, b"y" * 50 + b"\n", size, path)
    assert path.read_bytes() == b"one\n"
    assert append_whole(handle, b"two\n", size, path) == 8
    os.write(handle, b"torn")
    assert whole_lines(handle) == 8
    assert path.read_bytes() == b"one\ntwo\n"
    os.close(handle)
