"""Starts trainings under the DeepSpeed launcher, for jobs that hold several of them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmkd.errors import TrainingError


def launch(
    job: str, config: str, run: Path, overrides: Sequence[str] = (), ranks: int = 2, keep: Sequence[int] = ()
) -> None:
    """`mmkd JOB CONFIG` in the run folder `run`, on `ranks` processes of this machine; a run that is there goes on.

    Args:
        job: train, distill or cache.
        keep: open files that the launcher holds as well, so that a lock outlives this process while it trains.

    Raises: TrainingError where the training stops; its own message stands above.
    """
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    if launcher is None:
        raise TrainingError("the deepspeed launcher is not installed; pip install 'mmkd[train]'.")
    resume = ["--resume"] if (run / "config.yaml").exists() else []
    where = ["--num_gpus", str(ranks), "--master_port", str(_free_port()), "--module", "mmkd"]
    command = [launcher, *where, job, config, f"run.dir={run}", *overrides, *resume]
    if subprocess.run(command, check=False, pass_fds=tuple(keep)).returncode:
        raise TrainingError(f"{job} in {run} stopped; its message stands above. The same command again goes on.")


def _free_port() -> int:
    """So that trainings on one machine do not meet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
