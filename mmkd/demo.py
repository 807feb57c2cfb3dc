"""The demo: a teacher tuned on EasyVQA, a student that reads an image as 1 to 8 tokens, scored, released, reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmkd.errors import ConfigError
from mmkd.launch import launch
from mmkd.steps import Steps

QUESTIONS = 1000  # the fixed subset (the first questions of the test split) that the short demo scores
READINGS: list[Any] = [1, 2, 4, 8, "full"]
# Minutes of each stage on two cores with bf16, for the time left: (demo, demo --full).
MINUTES = {
    "assets": (0.3, 0.3),
    "teacher": (7.9, 16.0),
    "student": (4.7, 10.0),
    "scores": (1.1, 8.0),
    "costs": (0.1, 0.1),
    "release": (0.5, 0.5),
    "report": (0.2, 0.2),
}


def demo(full: bool = False, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Train teacher and student under the DeepSpeed launcher with two ranks, score both with lmms-eval, release the
    student, and write a page about it.

    What a stopped demo left in `out` is used again: finished stages are skipped, a training goes on from its last whole
    checkpoint. Writes and returns `<out>/summary.json`.

    Args:
        full: the budget of configs/demo/full-*.yaml, and the whole test split.
    Raises: ConfigError where `out` holds a demo with other settings; TrainingError where a training stops, whose own
        message stands above.
    """
    out = out or Path("runs/demo-full" if full else "runs/demo")
    teacher, student, released = out / "teacher", out / "student", out / "release"
    limit = None if full else QUESTIONS
    stages = Stages(out, {"full": full, "seed": seed})
    prefix = "demo/full-" if full else "demo/"
    start = [f"student.init={teacher / 'model'}", f"teacher.model={teacher / 'model'}"]

    stages.run("assets", _assets)
    stages.run("teacher", lambda: launch("train", f"{prefix}teacher", teacher, [f"run.seed={seed}"]))
    stages.run("student", lambda: launch("distill", f"{prefix}distill", student, [f"run.seed={seed}", *start]))
    scores = stages.run("scores", lambda: _scores(teacher, student, limit))
    costs = stages.run("costs", lambda: _costs(student))
    stages.run("release", lambda: _release(student, released))
    stages.run("report", lambda: _report(student))

    summary = {
        "seed": seed,
        "questions": limit or "all",
        "scores": scores,
        "costs": costs,
        "seconds": stages.seconds,
        "release": str(released),
        "report": str(student / "report.html"),
        **json.loads((student / "environment.json").read_text()),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console = Console()
    console.print(table(summary))
    minutes = " · ".join(f"{name} {seconds / 60:.1f}" for name, seconds in stages.seconds.items())
    console.print(f"minutes: {minutes} · in all {sum(stages.seconds.values()) / 60:.1f}", soft_wrap=True)
    console.print(f"{out / 'summary.json'} · {released} · {student / 'report.html'}", soft_wrap=True)
    return summary


class Stages:
    """Steps of one demo, with a word on what comes and how long it takes."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.minutes = {name: pair[bool(settings["full"])] for name, pair in MINUTES.items()}
        record = out / "demo.json"
        if record.exists() and json.loads(record.read_text()) != settings:
            raise ConfigError(
                f"{out} holds a demo with {record.read_text().strip()}, and {json.dumps(settings)} was asked for; "
                "remove the folder, or name another one with --out."
            )
        self.steps = Steps(out / "stages")
        self.seconds = self.steps.seconds
        record.write_text(json.dumps(settings) + "\n")

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, or what it returned in an earlier call of the demo."""
        names = list(self.minutes)
        left = sum(self.minutes[later] for later in names[names.index(name) :])
        said = f"[{names.index(name) + 1}/{len(names)}] {name} · about {left:.0f} min left in all"
        return self.steps.run(name, work, begin=lambda: print(said, flush=True))


def table(summary: dict[str, Any]) -> Table:
    """A row for each way of reading an image: accuracy, and what an image costs."""
    scores, costs = summary["scores"], summary["costs"]
    found = Table(title=f"EasyVQA, {summary['questions']} test questions, seed {summary['seed']}", title_justify="left")
    for column in ("model", "image tokens", "accuracy", "K,V an image", "prefill a question"):
        found.add_column(column, justify="left" if column == "model" else "right")
    for model, readings in scores.items():
        for reading, values in readings.items():
            cost = costs.get(reading, {}) if model == "student" else {}
            found.add_row(
                model,
                reading,
                f"{100 * values['acc']:.1f} %",
                f"{cost['kv_bytes'] / 1024:.0f} KiB" if cost else "",
                f"{cost['prefill_flops'] / 1e9:.2f} GFLOP" if cost else "",
            )
    return found


# --- the stages -------------------------------------------------------------------------------------------------------


def _assets() -> list[str]:
    from mmkd import assets

    return [str(assets.path(name)) for name in assets.ASSETS]


def _scores(teacher: Path, student: Path, limit: int | None) -> dict[str, Any]:
    from mmkd.evaluate.suite import evaluate

    return {
        "teacher": evaluate(str(teacher / "model"), "easyvqa", ["full"], True, limit, out=teacher / "eval"),
        "student": evaluate(str(student / "model"), "easyvqa", READINGS, True, limit, out=student / "eval"),
    }


def _costs(student: Path) -> dict[str, Any]:
    from mmkd.evaluate.costs import costs_of

    return costs_of(student / "model", READINGS)


def _release(student: Path, released: Path) -> dict[str, Any]:
    from mmkd.release.bundle import release

    shutil.rmtree(released, ignore_errors=True)
    return release(student, released)


def _report(student: Path) -> str:
    from mmkd.report.build import report

    return str(report(student))
