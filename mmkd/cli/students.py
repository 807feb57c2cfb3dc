"""From a config to a released model: train, distill, cache, eval, release."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmkd.cli.options import ConfigPath, Overrides, token_counts
from mmkd.errors import ConfigError

if TYPE_CHECKING:
    from mmkd.config.schema import Config
    from mmkd.config.vision_schema import VisionConfig

app = typer.Typer()

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last complete checkpoint.")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a model, with or without a teacher."""
    _train(_load_run(config, overrides), resume)


@app.command()
def distill(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Distil the config's teacher into its student."""
    loaded = _load_run(config, overrides)
    if loaded.teacher is None:
        raise ConfigError(
            "config: teacher is missing; distill needs one. Add e.g. teacher: {kind: live, model: runs/teacher/model}, "
            f"or use mmkd train. ({config})"
        )
    _train(loaded, resume)


@app.command()
def cache(
    config: ConfigPath,
    overrides: Overrides = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Stop when size and time, or cost, are known.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward of the teacher.")] = 16,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Rows of a file; the most that a kill can lose on a rank.")
    ] = 256,
) -> None:
    """Ask the config's teacher about its data once and keep the answers; killed, the same command goes on."""
    from mmkd.config.schema import Config

    loaded = _load_run(config, overrides)
    if not isinstance(loaded, Config):
        raise ConfigError(f"mmkd cache is for vision-language models; {config} is of kind: vision.")
    if loaded.teacher is not None and loaded.teacher.endpoint is not None:
        from mmkd.synthesis.served_teacher import cache_served

        return cache_served(loaded, shard_rows, typer.echo, estimate)
    from mmkd.train.cache import cache_teacher

    cache_teacher(loaded, batch_size, shard_rows, estimate, typer.echo)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, folder of a model or release, or a hub id.")],
    suite: Annotated[str | None, typer.Option(help="Suite below eval_suites, or a path; easyvqa by default.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token counts to score, comma-separated, e.g. 1,2,4,8,full; full by default.")
    ] = None,
    blind: Annotated[
        bool | None,
        typer.Option("--blind/--no-blind", help="Score without the images too, to see what language gives."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first n questions.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions in one batch, 64 by default; scores do not depend on it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results and samples; RUN/eval for a run.")] = None,
) -> None:
    """Score a model with lmms-eval; of a run, as its config's evaluate section says unless an option says other."""
    counts = None if tokens is None else token_counts(tokens)
    from mmkd.evaluate.job import job_of

    job = job_of(model)
    asked = job.asked
    from mmkd.evaluate.suite import evaluate as run_suite

    scores = run_suite(
        model=job.model,
        suite=suite or asked.suite,
        tokens=counts or asked.tokens,
        blind=asked.blind if blind is None else blind,
        limit=limit or asked.limit,
        batch_size=batch_size or asked.batch_size,
        out=out or job.out,
    )
    typer.echo(json.dumps(scores, indent=2, default=str))


@app.command()
def release(
    run: Annotated[Path, typer.Argument(help="Run folder whose model is released.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    kind: Annotated[
        str, typer.Option("--format", help="mmkd (any model), or llava (stock LLaVA, for full-vision students).")
    ] = "mmkd",
) -> None:
    """Write a run's model as a folder that transformers loads without mmkd, verify it, add a model card."""
    if kind not in ("mmkd", "llava"):
        raise ConfigError(f"--format has {kind!r}; allowed: mmkd, llava.")
    from mmkd.release.bundle import release as make_release

    record = make_release(run, out, "llava" if kind == "llava" else "mmkd")
    largest = max(reading["difference"] for reading in record["logits"].values())
    typer.echo(f"{out}: verified without mmkd; the logits differ from the trained model's by at most {largest:.2g}")


def _load_run(config: str, overrides: list[str] | None) -> Config | VisionConfig:
    from mmkd.config.load import load_run

    return load_run(config, overrides or [])


def _train(config: Config | VisionConfig, resume: bool) -> None:
    from mmkd.config.schema import Config

    if isinstance(config, Config):
        from mmkd.train.run import train as run_training

        folder = run_training(config, resume)
    else:
        from mmkd.vision_distill.run import train as run_vision_training

        folder = run_vision_training(config, resume)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(folder)
