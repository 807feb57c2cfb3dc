"""The command itself, its training under the real launcher on two ranks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mmkd.synthesis.competing.folder import alone
from mmkd.synthesis.competing.items import read_rows


def command(config: Path) -> subprocess.Popen:
    line = [sys.executable, "-m", "mmkd", "compete", str(config), "rounds=1"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_command_leaves_its_training_which_the_next_one_waits_for(competition, tmp_path):
    config, out = competition(), tmp_path / "competition"
    metrics = out / "round-1" / "student" / "metrics.jsonl"
    first = command(config)
    while first.poll() is None and not metrics.exists():
        time.sleep(0.01)
    first.kill()
    first.wait()
    said = command(config).communicate(timeout=900)[0]
    assert str(out / "rounds.jsonl") in said, said
    assert "held-out-1" in said
    assert [row["round"] for row in read_rows(out / "rounds.jsonl")] == [0, 1]
    steps = Counter(row["step"] for row in read_rows(metrics))
    assert set(steps.values()) == {1}  # trained once, by nobody twice


def test_what_a_killed_process_left_running_keeps_others_out(tmp_path):
    with alone(tmp_path) as lock:
        left = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    other = os.open(tmp_path / ".lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    left.kill()
    left.wait()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
