"""Scores a model on a suite with lmms-eval, once for each way of reading its images, loading the model once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from rich.console import Console
from rich.table import Table

from mmkd.config.load import packaged
from mmkd.errors import ConfigError, MmkdError
from mmkd.evaluate.lmms_model import MmkdLmms

Scores = dict[str, float]

# From lmms-eval's throughput block, whose names are averages over the calls of one run.
COSTS = {
    "image_tokens": "avg_image_tokens",
    "prefill_tokens": "avg_prefill_tokens",
    "seconds_per_question": "avg_latency",
}


def evaluate(
    model: str,
    suite: str,
    tokens: list[int | Literal["full"]],
    blind: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    out: Path | None = None,
) -> dict[str, Scores]:
    """Score a model.

    Args:
        model: folder or hub id of an mmkd model, or of any image-text-to-text model with tokens ["full"].
        suite: folder name below eval_suites, or a path to a folder of lmms-eval task YAMLs.
        tokens: each k to read images with, or "full".
        blind: also score without the images.
        limit: only the first n questions of each task.
        out: folder for SUITE-K.json (scores, cost, versions) and SUITE-K.samples.jsonl (one line per question).

    Returns: by k, "full" and "blind": each metric of the suite (TASK/METRIC where it has several tasks), and its cost:
        image_tokens per image, prefill_tokens and seconds_per_question per question.

    Raises: ConfigError for an unknown suite or token count; MmkdError where lmms-eval brings no score.
    """
    found = find_suite(suite)
    asked = list(dict.fromkeys(tokens))
    lm = MmkdLmms(pretrained=model, batch_size=batch_size)
    for count in asked:
        lm.read_with(count)  # refuses a wrong count before anything is scored
    readings: list[tuple[str, int | Literal["full"], bool]] = [(str(count), count, False) for count in asked]
    if blind:
        readings.append(("blind", "full", True))

    scores: dict[str, Scores] = {}
    for name, count, without_images in readings:
        lm.read_with(count, without_images)
        results = _run(lm, found, limit, batch_size)
        scores[name] = _scores(results, found) | _costs(results)
        if out is not None:
            about = {"model": model, "suite": found.name, "tokens": count, "blind": without_images, "limit": limit}
            _write(Path(out), f"{found.name}-{name}", about, scores[name], results)
    Console().print(table(found.name, scores))
    return scores


@dataclass(frozen=True)
class Suite:
    """A folder of lmms-eval task YAMLs.

    Attributes:
        tasks: what is asked of lmms-eval: the folder's groups, else all its tasks.
        builtin: whether it names tasks that come with lmms-eval.
    """

    name: str
    folder: Path
    tasks: tuple[str, ...]
    builtin: bool


def suites_folder() -> Path:
    """Where the suites of this installation are; what lmms-eval's --include_path takes."""
    return packaged("eval_suites")


def find_suite(suite: str) -> Suite:
    """The suite with this name or at this path. Raises ConfigError naming the suites there are."""
    folder = Path(suite)
    if folder.name == suite:
        folder = suites_folder() / suite
    if not folder.is_dir():
        names = sorted(path.name for path in suites_folder().iterdir() if path.is_dir())
        raise ConfigError(
            f"suite {suite!r}: no such suite; there are {', '.join(names)}, or give the path of a folder."
        )
    index = TaskManager(include_path=[str(folder)], include_defaults=False)
    tasks = index.all_groups or index.all_subtasks
    if not tasks:
        raise ConfigError(f"suite {folder}: no lmms-eval task in it; it needs a YAML with task: (or group: and task:).")
    return Suite(folder.name, folder, tuple(tasks), builtin=bool(index.all_groups))


def _run(lm: MmkdLmms, suite: Suite, limit: int | None, batch_size: int) -> dict[str, Any]:
    # Without its own 1,900 task files lmms-eval starts in milliseconds.
    manager = TaskManager(include_path=[str(suite.folder)], include_defaults=suite.builtin, model_name="mmkd")
    results = simple_evaluate(
        model=lm,
        tasks=list(suite.tasks),
        task_manager=manager,
        batch_size=batch_size,
        limit=limit,
        log_samples=True,
    )
    if not results or not results.get("samples") or not all(results["samples"].values()):
        raise MmkdError(f"lmms-eval brought no answers for {', '.join(suite.tasks)}; its messages above say why.")
    return results


def _scores(results: dict[str, Any], suite: Suite) -> Scores:
    several = len(results["samples"]) > 1
    scores = {}
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")) and _is_number(value):
                scores[f"{task}/{metric}" if several else metric] = float(value)
    if not scores:
        raise MmkdError(f"lmms-eval brought no score for {', '.join(suite.tasks)}; its messages above say why.")
    return scores


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _costs(results: dict[str, Any]) -> Scores:
    throughput = results.get("throughput", {})
    return {name: float(throughput[key]) for name, key in COSTS.items() if key in throughput}


def _write(out: Path, name: str, about: dict[str, Any], scores: Scores, results: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    kept = {key: results.get(key) for key in ("results", "throughput", "n-samples", "date")}
    # Its own field holds the branch of whatever git checkout the run was started in.
    kept["lmms_eval_version"] = version("lmms_eval")
    (out / f"{name}.json").write_text(json.dumps(about | {"scores": scores} | kept, indent=2, default=str) + "\n")
    with (out / f"{name}.samples.jsonl").open("w") as file:
        for task, samples in results["samples"].items():
            for sample in samples:
                row = {"task": task, **{k: v for k, v in sample.items() if k not in ("arguments", "doc_hash", "resps")}}
                file.write(json.dumps(row, default=str) + "\n")


def table(title: str, scores: dict[str, Scores]) -> Table:
    """A row for each metric, a column for each way of reading an image."""
    found = Table(title=title, title_justify="left")
    found.add_column("image tokens read")
    for reading in scores:
        found.add_column(reading, justify="right")
    for metric in dict.fromkeys(metric for row in scores.values() for metric in row):
        found.add_row(metric.replace("_", " "), *(_shown(metric, row.get(metric)) for row in scores.values()))
    return found


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric == "seconds_per_question":
        return f"{1000 * value:.1f} ms"
    return f"{100 * value:.1f} %" if metric not in COSTS and 0 <= value <= 1 else f"{value:.1f}"
