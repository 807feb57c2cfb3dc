"""The command line: one command per job. Parses, calls, prints; torch is imported only by the commands that need it."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmkd.errors import ConfigError, MmkdError

if TYPE_CHECKING:
    from mmkd.config.schema import Config

app = typer.Typer(
    name="mmkd",
    help="Distil big vision-language models into small ones that read each image as a handful of tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Layout(StrEnum):
    mmkd = "mmkd"
    llava = "llava"


ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file, run folder, or packaged config such as demo/distill.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. student.voco.tokens=4.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last complete checkpoint.")]
Model = Annotated[str, typer.Argument(help="Folder of a model or release, or a hub id.")]
Run = Annotated[Path, typer.Argument(help="Run folder.", exists=True, file_okay=False)]
Tokens = Annotated[int | None, typer.Option(min=1, help="Tokens an image is read with; the model's most by default.")]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a model, with or without a teacher."""
    _train(_load(config, overrides), resume)


@app.command()
def distill(config: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Distil the config's teacher into its student."""
    loaded = _load(config, overrides)
    if loaded.teacher is None:
        raise ConfigError(
            f"config: teacher is missing; distill needs one. Add e.g. teacher: {{kind: live, model: runs/teacher}}, "
            f"or use mmkd train. ({config})"
        )
    _train(loaded, resume)


@app.command("eval")
def evaluate(
    model: Model,
    suite: Annotated[str, typer.Option(help="Suite below eval_suites, or a path.")] = "easyvqa",
    tokens: Annotated[str, typer.Option(help="Token counts to score, comma-separated, e.g. 1,2,4,8,full.")] = "full",
    blind: Annotated[
        bool, typer.Option("--blind", help="Score without the images, to see what language gives.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first n questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one batch; scores do not depend on it.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder for results and samples.")] = None,
) -> None:
    """Score a model with lmms-eval."""
    counts = _token_counts(tokens)
    from mmkd.evaluate.suite import evaluate as run_suite

    scores = run_suite(
        model=model, suite=suite, tokens=counts, blind=blind, limit=limit, batch_size=batch_size, out=out
    )
    typer.echo(json.dumps(scores, indent=2, default=str))


@app.command()
def release(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; must not hold another release.")],
    layout: Annotated[Layout, typer.Option(help="mmkd (with compression) or llava (stock, without).")] = Layout.mmkd,
) -> None:
    """Write a run's model as a folder that transformers loads, and verify it in a clean process."""
    from mmkd.release.export import release as export

    typer.echo(export(run=run, out=out, layout=layout.value))


@app.command()
def chat(
    model: Model,
    image: Annotated[Path, typer.Option(help="Image to talk about.", exists=True, dir_okay=False)],
    tokens: Tokens = None,
    question: Annotated[str | None, typer.Option(help="Ask this one question and leave.")] = None,
) -> None:
    """Talk with a model about an image."""
    from mmkd.release.chat import chat as talk

    talk(model=model, image=image, tokens=tokens, question=question)


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    tokens: Tokens = None,
    allow_remote_images: Annotated[
        bool,
        typer.Option("--allow-remote-images", help="Fetch image URLs that requests name (off: only inline images)."),
    ] = False,
) -> None:
    """Serve a release with an OpenAI-compatible API."""
    from mmkd.release.serve import serve as start

    start(model=model, host=host, port=port, tokens=tokens, allow_remote_images=allow_remote_images)


@app.command()
def report(run: Run) -> None:
    """Write one self-contained HTML page about a run."""
    from mmkd.report.page import report as write

    typer.echo(write(run=run))


@app.command()
def compress(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the compressed images.")],
    tokens: Tokens = None,
) -> None:
    """Compress images once, to ask about them many times."""
    from mmkd.release.compress import compress as run_compress

    typer.echo(run_compress(model=model, images=images, out=out, tokens=tokens))


@app.command()
def demo(
    full: Annotated[bool, typer.Option("--full", help="The long budget: up to 45 minutes on two cores.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the whole demo.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/demo or runs/demo-full by default.")] = None,
) -> None:
    """Train a teacher, distil it, score it and release it, on real parts, on a CPU."""
    from mmkd.demo import demo as run_demo

    run_demo(full=full, seed=seed, out=out)


@app.command()
def doctor() -> None:
    """Show what this machine has, and how to install what it lacks."""
    from mmkd.doctor import doctor as examine

    raise typer.Exit(examine())


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Assets to bring; all by default.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every byte of what is there, not only its size.")
    ] = False,
) -> None:
    """Bring the demo's data and weights into the cache folder; broken ones are fetched again."""
    from mmkd import assets as store

    for name in names or store.ASSETS:
        if verify and name in store.ASSETS and not store.is_intact(store.ASSETS[name]):
            store.fetch(store.ASSETS[name])
        place = store.path(name)
        typer.echo(f"{name:<20} {store.ASSETS[name].license:<12} {place}")


@app.command()
def schema(out: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None) -> None:
    """Write the JSON schema of a config, for editors."""
    from mmkd.config.load import json_schema

    text = json.dumps(json_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text)


def _load(config: str, overrides: list[str] | None) -> Config:
    from mmkd.config.load import load_config

    return load_config(config, overrides or [])


def _train(config: Config, resume: bool) -> None:
    from mmkd.train.run import train as run_training

    folder = run_training(config, resume)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(folder)


def _token_counts(text: str) -> list[int | str]:
    counts: list[int | str] = []
    for item in text.split(","):
        item = item.strip()
        if item != "full" and not (item.isdecimal() and int(item) > 0):
            raise ConfigError(
                f"--tokens has {item!r}; allowed: whole numbers from 1 and the word full, e.g. 1,2,4,full."
            )
        counts.append(item if item == "full" else int(item))
    return counts


def _without_local_rank(arguments: list[str]) -> list[str]:
    """Drop `--local_rank=0`, which the deepspeed launcher puts before the arguments; LOCAL_RANK says the same."""
    return [item for item in arguments if not item.startswith(("--local_rank=", "--local-rank="))]


def main() -> None:
    """Entry point. A user's error is printed as its text and gives exit code 2; a traceback means a defect of mmkd."""
    try:
        app(args=_without_local_rank(sys.argv[1:]), prog_name="mmkd")
    except MmkdError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from None
