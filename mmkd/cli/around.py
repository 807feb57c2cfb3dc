"""Around the runs: report, demo, doctor, assets, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mmkd.errors import ConfigError

app = typer.Typer()


@app.command("report")
def report_page(
    folder: Annotated[Path, typer.Argument(help="Of a run or a data engine; the page is FOLDER/report.html.")],
) -> None:
    """Write one HTML page of a run, or of a folder of `mmkd programs`, `mmkd compete` or `mmkd evolve`."""
    from mmkd.report.build import report

    typer.echo(report(folder))


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
def schema(
    kind: Annotated[
        str, typer.Argument(help="train, vision, answer, select, compete, evolve, programs or judge.")
    ] = "train",
    out: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
) -> None:
    """Write the JSON schema of a kind of config, for editors."""
    from mmkd.config.kinds import KINDS
    from mmkd.config.load import json_schema
    from mmkd.whole_files import write_whole

    if kind not in KINDS:
        raise ConfigError(f"schema: no kind of config is called {kind!r}; allowed: {', '.join(KINDS)}.")
    text = json.dumps(json_schema(KINDS[kind]), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_whole(out, [text])
