"""The command line: one command per job. Parses, calls, prints; torch is imported only by the commands that need it."""

from __future__ import annotations

import sys

import typer

from mmkd.cli import around, engines, readers, students
from mmkd.errors import MmkdError

app = typer.Typer(
    name="mmkd",
    help="Distil big vision-language models into small ones that read each image as a handful of tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for jobs in (students, readers, engines, around):
    app.add_typer(jobs.app)


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
