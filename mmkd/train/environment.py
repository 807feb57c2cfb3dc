"""What a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment(world: int) -> dict[str, Any]:
    """Versions, machine, commit: what is needed to run it again."""
    names = ("mmkd", "torch", "transformers", "deepspeed", "accelerate", "timm", "peft")
    try:
        changed = _git("status", "--porcelain", "-uno", "--", "mmkd", "adapters", "configs")
        commit = _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "world_size": world,
        "commit": commit,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    ).stdout.strip()
