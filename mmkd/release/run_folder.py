"""What a run folder says about the model in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmkd.checkpoints import unfinished
from mmkd.errors import ReleaseError


@dataclass
class RunFolder:
    """A finished run, read.

    Attributes:
        config: the resolved config.yaml.
        environment: versions, machine and commit of the training.
        metrics: the last line of metrics.jsonl of each stage, in order.
        scores: what `mmkd eval --out RUN/eval` wrote, one entry a suite and token count.
        teacher: the config.json of a teacher that is a folder here, else empty.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    teacher: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.path / "model"

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read a run folder. Raises ReleaseError where it is none, or its model is not finished."""
        if not (path / "config.yaml").is_file():
            hint = f" This is a model; give the run it came from, {path.resolve().parent}." * is_model(path)
            raise ReleaseError(f"{path} is not a run folder: it has no config.yaml.{hint}")
        missing = unfinished(path / "model")
        if missing is not None:
            raise ReleaseError(
                f"{path / 'model'} is not a finished model ({missing}). "
                f"Finish the training: mmkd train {path} --resume."
            )
        config = yaml.safe_load((path / "config.yaml").read_text())
        teacher = (config.get("teacher") or {}).get("model")
        return cls(
            path=path,
            config=config,
            environment=_json(path / "environment.json"),
            metrics=_last_of_each_stage(path / "metrics.jsonl"),
            scores=_scores(path / "eval"),
            teacher=_json(Path(teacher) / "config.json") if teacher else {},
        )


def is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ReleaseError(f"{path} is not JSON ({error}); write it again, or remove it.") from error


def _last_of_each_stage(path: Path) -> list[dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a kill may cut the line that was being written
        if "loss" in row:
            last[str(row.get("stage"))] = row
    return list(last.values())


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Files of other kinds may lie in the folder too; scores name their suite."""
    found = [_json(path) for path in sorted(folder.glob("*.json"))]
    return [entry for entry in found if isinstance(entry, dict) and {"suite", "scores", "tokens"} <= set(entry)]
