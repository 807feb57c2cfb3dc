"""The demo: a teacher tuned on EasyVQA, a student that reads an image as 1 to 8 tokens, scores of both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmkd.errors import TrainingError

QUESTIONS = 1000  # the fixed subset (the first questions of the test split) that the short demo scores


def demo(full: bool = False, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Train teacher and student under the DeepSpeed launcher with two ranks, score both with lmms-eval.

    What a stopped demo left in `out` is used again. Writes and returns `<out>/summary.json`.

    Args:
        full: three times the steps, and the whole test split.
    Raises: TrainingError where a stage fails; its own message stands above.
    """
    from mmkd.evaluate.suite import evaluate

    out = out or Path("runs/demo-full" if full else "runs/demo")
    teacher, student = out / "teacher", out / "student"
    limit = None if full else QUESTIONS
    seconds: dict[str, float] = {}
    scores: dict[str, Any] = {}
    common = [f"run.seed={seed}", *(["stages[0].steps=1350"] if full else [])]
    _stage("teacher", seconds, lambda: _launch("train", "demo/teacher", teacher, common))
    start = [f"student.init={teacher / 'model'}", f"teacher.model={teacher / 'model'}"]
    _stage("student", seconds, lambda: _launch("distill", "demo/distill", student, [*common, *start]))

    def score() -> None:
        scores["teacher"] = evaluate(str(teacher / "model"), "easyvqa", ["full"], True, limit, 64, teacher / "eval")
        scores["student"] = evaluate(
            str(student / "model"), "easyvqa", [1, 2, 4, 8, "full"], False, limit, 64, student / "eval"
        )

    _stage("score", seconds, score)
    environment = json.loads((student / "environment.json").read_text())
    summary = {"seed": seed, "questions": limit or "all", "scores": scores, "seconds": seconds, **environment}
    (out / "summary.json").write_text(json.dumps(summary, indent=1, default=str))
    print(f"\n{out / 'summary.json'} · " + " · ".join(f"{name} {s / 60:.1f} min" for name, s in seconds.items()))
    return summary


def _stage(name: str, seconds: dict[str, float], work: Any) -> None:
    started = time.perf_counter()
    work()
    seconds[name] = round(time.perf_counter() - started, 1)


def _launch(job: str, config: str, run: Path, overrides: list[str]) -> None:
    if (run / "model" / "COMPLETE.json").exists():
        return
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    if launcher is None:
        raise TrainingError("the deepspeed launcher is not installed; pip install 'mmkd[train]'.")
    resume = ["--resume"] if (run / "config.yaml").exists() else []
    command = [launcher, "--num_gpus", "2", "--module", "mmkd", job, config, f"run.dir={run}", *overrides, *resume]
    if subprocess.run(command, check=False).returncode:
        raise TrainingError(f"{job} in {run} stopped; its message stands above. `mmkd demo` again goes on from there.")
