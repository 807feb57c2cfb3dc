"""Progress of a run on the terminal: a bar with the time left, and a table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmkd.synthesis.requests import Answer
from mmkd.synthesis.tally import Tally


def shown(answers: Iterable[Answer], tally: Tally, title: str, total: int | None = None) -> Iterator[Answer]:
    """Hands the answers on and draws a bar on stderr meanwhile; where that is no terminal, nothing."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[line]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, line="")
        for answer in answers:
            progress.update(task, advance=1, line=tally.line())
            yield answer
