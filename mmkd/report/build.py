"""`mmkd report FOLDER`: everything there is of a run or a data engine, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.report.folder import Folder
from mmkd.report.page import write_page
from mmkd.report.run_folder import read_run

MARKS = {  # files that only the folder of that engine holds
    "compete": ("given/pool.jsonl", "rounds.jsonl"),
    "evolve": ("rounds/0.jsonl",),
    "programs": ("programs.jsonl", "verdicts.jsonl", "round-0/programs.jsonl", "round-0/verdicts.jsonl"),
}


def report(folder: str | Path) -> Path:
    """Write FOLDER/report.html and return its path.

    The folder is one of `mmkd compete`, `mmkd evolve`, `mmkd programs`, or a training run, finished or not, told apart
    by what lies in it. What it lacks is left out and named at the end of the page. Reads files only: nothing is
    fetched, nothing is trained or scored.

    Raises: DataError where the folder is none of these.
    """
    path = Path(folder)
    for engine, marks in MARKS.items():
        if any((path / mark).is_file() for mark in marks):
            found = Folder(path)
            return write_page(found, "data.html.jinja", _page(engine)(found))
    from mmkd.report.run_page import run_page  # torch, which the pages above do without

    run = read_run(path)
    return write_page(run, "run.html.jinja", run_page(run))


def _page(engine: str) -> Callable[[Folder], dict[str, Any]]:
    if engine == "compete":
        from mmkd.report.compete_page import compete_page

        return compete_page
    if engine == "evolve":
        from mmkd.report.evolve_page import evolve_page

        return evolve_page
    from mmkd.report.programs_page import programs_page

    return programs_page
