"""One competition a folder, and one process on it at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.schema import Config
from mmkd.errors import ConfigError
from mmkd.synthesis.same_settings import changed
from mmkd.whole_files import write_whole

MAY_CHANGE = {"rounds", "stop", "ranks"}  # a competition may be made longer, or go on elsewhere


@contextmanager
def alone(out: Path) -> Iterator[int]:
    """Waits until no other process is at work in `out`. The file it gives holds the folder while it is open: whoever
    inherits it, as a training's launcher does, keeps others out even where this process is killed."""
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(
                f"{out} is in use, by another mmkd compete or by a training that a killed one left; waiting for its end"
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def require_same(out: Path, config: CompeteConfig, plans: dict[str, Config]) -> None:
    """Write the settings down, or compare them with those that the folder began with. Raises ConfigError."""
    settings: dict[str, Any] = {
        "competition": config.model_dump(mode="json", exclude=MAY_CHANGE),
        **{name: plan.model_dump(mode="json") for name, plan in plans.items()},
    }
    file = out / "config.yaml"
    if file.exists():
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        if differ := changed(known, settings):
            raise ConfigError(
                f"{out} holds a competition with other settings: {', '.join(differ[:5])}. Give another out, or take "
                f"these back; {', '.join(sorted(MAY_CHANGE))} and how an endpoint is reached may change."
            )
        return
    write_whole(file, [yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)])
