"""Ranks and launchers that die: what the run says, what it leaves, and how it goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ranks
import yaml

from mmkd.checkpoints import latest_complete
from mmkd.errors import TrainingError

STEPS = 160


def wait_for(what: Callable[[], Any], seconds: float = 240, every: float = 0.02) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(every)
    raise TimeoutError(f"{what} did not come true in {seconds} s")


@pytest.mark.distributed
def test_a_rank_killed_while_it_saves_leaves_no_checkpoint_that_counts(config, finished):
    settings = config(training={"save_every": 5, "keep_checkpoints": 9})
    folder = Path(settings["run"]["dir"]) / "checkpoints" / "distill"
    killed: list[int] = []

    def kill(pids: list[int]) -> None:
        wait_for((folder / "checkpoint-10").exists, every=0.0005)
        os.kill(pids[1], signal.SIGKILL)
        killed.append(pids[1])

    first, second = ranks.on_ranks(2, ranks.go, settings, meanwhile=kill)
    assert second is None
    assert isinstance(first, TrainingError)
    assert f"rank 1 (process {killed[0]}) died" in str(first)
    assert "checkpoint-5: --resume goes on from step 5" in str(first)
    assert (folder / "checkpoint-10").exists()
    assert latest_complete(folder) == folder / "checkpoint-5"
    assert ranks.run(settings, resume=True) == pytest.approx(ranks.losses(finished(2)), rel=1e-6)


class Launched:
    """A run under the real launcher."""

    def __init__(self, settings: dict[str, Any], *options: str):
        self.run = Path(settings["run"]["dir"])
        file = self.run.parent / "config.yaml"
        file.write_text(yaml.safe_dump(settings))
        launcher = Path(sys.executable).with_name("deepspeed")
        with ranks.free_port() as port:
            command = [str(launcher), "--num_gpus", "2", "--master_port", str(port), "--module", "mmkd", "distill"]
        self.output = self.run.parent / f"output-{time.monotonic_ns()}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen([*command, str(file), *options], stdout=output, stderr=subprocess.STDOUT)

    def family(self) -> list[psutil.Process]:
        """Launcher, its helper and the ranks."""
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def rank(self, number: int) -> psutil.Process:
        return next(p for p in self.family() if f"--local_rank={number}" in p.cmdline())

    def steps(self) -> int:
        metrics = self.run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def end(self) -> tuple[int, str]:
        code = self.process.wait(240)
        return code, self.output.read_text()


def all_gone(family: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_survives_the_kill_of_a_rank_and_of_its_launcher(config):
    # Long enough that ranks, which look for their launcher once a second, are not done by then on a fast machine.
    options = {"stage": {"steps": STEPS}, "training": {"save_every": 5, "keep_checkpoints": 2}}
    whole = ranks.run(config("whole", **options))
    settings = config("killed", **options)

    first = Launched(settings)
    at = random.Random().randint(6, 12)
    wait_for(lambda: first.steps() >= at)
    family, victim = first.family(), first.rank(1)
    victim.kill()
    code, output = first.end()
    assert code != 0
    assert f"rank 1 (process {victim.pid}) died" in output, output
    assert "--resume goes on from step" in output
    assert "Traceback" not in output
    wait_for(lambda: all_gone(family), seconds=10)

    second = Launched(settings, "--resume")
    at = random.Random().randint(18, 28)
    wait_for(lambda: second.steps() >= at)
    family = second.family()
    second.process.kill()  # the launcher itself; its helper and the ranks are no children of this test
    second.process.wait()
    wait_for(lambda: all_gone(family), seconds=60)
    assert "its launcher" in second.output.read_text()
    assert second.steps() < STEPS

    third = Launched(settings, "--resume")
    code, output = third.end()
    assert code == 0, output
    assert ranks.losses(settings) == pytest.approx(whole, rel=1e-6)
    ours = [line for line in output.splitlines() if "runner.py" not in line and "launch.py" not in line]
    noise = [line for line in ours if "Warning" in line or "WARNING" in line]
    assert noise == []
