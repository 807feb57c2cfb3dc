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

LIMITS = ("judge.max_tokens", "sampling.max_tokens", "may_be_cut", "reasks")  # what ended within them stays
MAY_CHANGE = ("out", "rounds", "stop", "ranks", *LIMITS)  # it may be made longer, go on elsewhere, or with more tokens


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
                f"{out} is in use, by another mmkd compete or by a training that a killed one left; waiting for its "
                "end",
                markup=False,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def require_same(out: Path, config: CompeteConfig, plans: dict[str, Config]) -> None:
    """Write the settings down, or compare them with those that the folder began with. Raises ConfigError.

    Limits that have changed are written behind those before: see `verdict_limits`.
    """
    settings: dict[str, Any] = {
        "competition": config.model_dump(mode="json"),
        **{name: plan.model_dump(mode="json") for name, plan in plans.items()},
    }
    file = out / "config.yaml"
    if file.exists():
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        limits = known.pop("limits", [_limits(known["competition"])])
        if differ := [path for path in changed(known, settings) if not _may_change(path)]:
            raise ConfigError(
                f"{out} holds a competition with other settings: {', '.join(differ[:5])}. Give another out, or take "
                f"these back; {', '.join(MAY_CHANGE)} and how an endpoint is reached may change."
            )
        if (now := _limits(settings["competition"])) in limits:
            return
        settings = known | {"limits": [*limits, now]}
    write_whole(file, [yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)])


def verdict_limits(out: Path, config: CompeteConfig) -> list[int]:
    """Values of judge.max_tokens with which the folder's earlier runs asked, those below the one of now."""
    now = config.judge.max_tokens
    return sorted({one["verdict"] for one in _earlier(out) if one["verdict"] < now})


def answer_limits(out: Path, config: CompeteConfig) -> list[int]:
    """As `verdict_limits`: of sampling.max_tokens for the teacher, where its answers had to end by themselves."""
    most, whole = config.sampling.max_tokens, [one["answer"] for one in _earlier(out) if not one["may_be_cut"]]
    return sorted({limit for limit in whole if limit < most or (limit == most and config.may_be_cut)})


def _earlier(out: Path) -> list[dict[str, Any]]:
    file = out / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("limits", []) if file.exists() else []


def _limits(competition: dict[str, Any]) -> dict[str, Any]:
    judge, sampling = competition["judge"], competition["sampling"]
    return {
        "verdict": judge["max_tokens"],
        "answer": sampling["max_tokens"],
        "may_be_cut": competition["may_be_cut"],
    }


def _may_change(path: str) -> bool:
    return any(f"{path}.".startswith(f"competition.{name}.") for name in MAY_CHANGE)
