"""Progress on stderr: a bar with the time left on a terminal; elsewhere, as in a log, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from mmkd.synthesis.requests import Answer
from mmkd.synthesis.tally import Tally

EVERY = 60.0  # seconds from one line to the next

T = TypeVar("T")


def shown(answers: Iterable[Answer], tally: Tally, title: str, total: int | None = None) -> Iterator[Answer]:
    """Hands the answers on, and shows how many there are and what `tally` says of them."""
    return followed(answers, title, total, tally.line)


def followed(steps: Iterable[T], title: str, total: int | None, line: Callable[[], str] = str) -> Iterator[T]:
    """Hands the steps on, and shows how many there are, what `line` says, and the time left."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[line]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number = progress.add_task(title, total=total, line="")
        [task] = progress.tasks
        said = time.monotonic()
        for step in steps:
            progress.update(number, advance=1, line=line())
            if progress.disable and time.monotonic() - said >= EVERY:
                console.print(_told(task), highlight=False, soft_wrap=True)
                said = time.monotonic()
            yield step


def _told(task: Task) -> str:
    """As the lines of a training."""
    parts = [f"{task.description} {task.completed:,.0f}" + (f"/{task.total:,.0f}" if task.total else "")]
    if task.fields["line"]:
        parts.append(task.fields["line"])
    if task.time_remaining is not None:
        parts.append(f"{task.time_remaining / 60:.1f} min left")
    return " · ".join(parts)
