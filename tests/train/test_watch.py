"""Who counts as dead."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from mmkd.train.watch import alive, process_of


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
