"""What a run writes and shows while it trains."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mmkd.train.task import DistillTask


class MetricsFile(TrainerCallback):
    """Appends one JSON line for each log to metrics.jsonl, on rank 0.

    A run that goes on from step n first drops the stage's lines after n, which it writes anew.
    """

    def __init__(self, path: Path, stage: str):
        self.path, self.stage = path, stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = []
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the tail that a killed run left half written
                continue
            if line["stage"] != self.stage or line["step"] <= state.global_step:
                kept.append(text + "\n")
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(kept))
        os.replace(partial, self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            line = {"stage": self.stage, "step": state.global_step, "time": round(time.time(), 3), **logs}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class StepFinished(TrainerCallback):
    """Tells the task that an optimiser step is done: before the checkpoint of that step, so that it holds the news."""

    def __init__(self, task: DistillTask):
        self.task = task

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.task.step_finished(state.global_step / state.max_steps)


class StepsOfTheConfig(TrainerCallback):
    """A run that goes on saves and logs as its config says; transformers would go on as its checkpoint says."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)


class Progress(TrainerCallback):
    """One line for each log: step, losses, speed, time left."""

    def __init__(self, steps: int, rank: int):
        self.steps, self.rank = steps, rank
        self.started: tuple[int, float] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.started is None:
            self.started = (state.global_step, time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.rank or not logs or "loss" not in logs or self.started is None:
            return
        done = state.global_step - self.started[0]
        left = (time.perf_counter() - self.started[1]) / max(done, 1) * (self.steps - state.global_step)
        losses = [
            f"{n} {v:.3f}"
            for n, v in logs.items()
            if n in ("loss", "ce", "kl", "reverse_kl", "js", "skewed_kl", "tv", "taid", "taid_t")
        ]
        unit = "tok" if "tokens_per_second" in logs else "images"
        rate = logs["tokens_per_second" if unit == "tok" else "images_per_second"]
        speed = f"{rate:,.0f} {unit}/s · wait {logs['data_wait']:.0%}"
        print(
            f"step {state.global_step}/{self.steps} · {' · '.join(losses)} · {speed} · {left / 60:.1f} min left",
            flush=True,
        )
