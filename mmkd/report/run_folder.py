"""What a run folder holds, as far as it can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmkd.errors import DataError
from mmkd.report.folder import Folder, json_lines, mapping, read_json


@dataclass
class Scored:
    """One way of reading images, scored on a suite.

    Attributes:
        reading: "1", "2", .., "full" or "blind".
        scores: metrics and costs, see `mmkd.evaluate.suite.evaluate`.
        samples: file with a line for each question.
    """

    suite: str
    reading: str
    scores: dict[str, float]
    about: dict[str, Any]
    samples: Path


@dataclass
class Metric:
    """One line of metrics.jsonl; `step` counts over all stages."""

    stage: str
    step: int
    values: dict[str, float]


@dataclass
class RunFolder(Folder):
    """A run as far as it is there."""

    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    @property
    def model(self) -> Path:
        return self.path / "model"


def read_run(path: Path) -> RunFolder:
    """Read a run folder. Raises DataError where it is none."""
    expected = ("config.yaml", "environment.json", "metrics.jsonl", "model", "eval")
    if not path.is_dir() or not any((path / name).exists() for name in expected):
        raise DataError(
            f"{path} is not a run folder: it holds none of {', '.join(expected)}. Give the folder that run.dir of the "
            "config named."
        )
    run = RunFolder(path)
    run.config_text = run.try_to("config", (path / "config.yaml").read_text, "")
    run.config = run.try_to("config", lambda: mapping(yaml.safe_load(run.config_text or "{}")), {})
    run.environment = run.try_to("environment", lambda: mapping(read_json(path / "environment.json")), {})
    run.metrics = run.try_to("training curves", lambda: read_metrics(path / "metrics.jsonl"), [])
    run.scored = read_scored(path / "eval", run)
    if not run.scored:
        run.notes.append(f"scores: none yet. Bring them with: mmkd eval {path / 'model'} --out {path / 'eval'}")
    return run


def read_metrics(path: Path) -> list[Metric]:
    """Lines of metrics.jsonl in order; of a step that a resumed run wrote twice the later one, without torn lines."""
    by_step: dict[tuple[str, int], dict[str, float]] = {}
    for values in json_lines(path):
        if isinstance(values.get("step"), int):
            by_step[str(values.get("stage", "")), values["step"]] = {
                name: float(value)
                for name, value in values.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            }
    stages = list(dict.fromkeys(stage for stage, _ in by_step))
    found, before = [], 0
    for stage in stages:
        steps = sorted(step for name, step in by_step if name == stage)
        found += [Metric(stage, before + step, by_step[stage, step]) for step in steps]
        before += steps[-1]
    return found


def read_scored(folder: Path, run: RunFolder) -> list[Scored]:
    """Every scored reading in an eval folder, suites by name, token counts from few to full, blind last."""
    found = []
    for path in sorted(folder.glob("*.json")):
        suite, _, reading = path.stem.rpartition("-")
        about = run.try_to(f"scores of {path.name}", lambda path=path: mapping(read_json(path)), {})
        scores = {
            str(name): float(value)
            for name, value in (about.get("scores") if isinstance(about.get("scores"), dict) else {}).items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        if suite and scores:
            found.append(Scored(suite, reading, scores, about, path.with_name(f"{path.stem}.samples.jsonl")))
    return sorted(found, key=lambda one: (one.suite, *reading_order(one.reading)))


def reading_order(reading: str) -> tuple[int, int]:
    if reading.isdecimal():
        return 0, int(reading)
    return (1, 0) if reading == "full" else (2, 0)


def reading_name(reading: str) -> str:
    return f"k = {reading}" if reading.isdecimal() else reading
