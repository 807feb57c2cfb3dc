"""Who counts as dead."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from safetensors import SafetensorError

from mmkd.errors import TrainingError
from mmkd.train.watch import Watch, alive, process_of


@pytest.fixture
def other():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_a_step_of_the_clock_kills_nobody(other, monkeypatch):
    """When the machine started, by which a process's creation time is told, moves with the clock."""
    known, started = process_of(other.pid), psutil.boot_time()
    assert alive(known)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: started + 1)
    assert alive(known)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: started - 3600)
    assert alive(known)


def test_what_safetensors_says_of_a_full_disk_is_told_with_how_to_go_on():
    message = r"a file could not be read or written \(No space left\)\. go on\."
    with pytest.raises(TrainingError, match=message), Watch(0, 1, lambda: "go on."):
        raise SafetensorError("No space left")


def test_the_dead_are_known_whether_their_parent_has_looked_or_not(other):
    known = process_of(other.pid)
    other.kill()
    while known.status() != psutil.STATUS_ZOMBIE:
        pass
    assert not alive(known)
    other.wait()
    assert not alive(known)
    assert process_of(other.pid) is None
    assert not alive(None)
