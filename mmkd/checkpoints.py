"""Whole folders only: checkpoints, and the models that stages leave.

DeepSpeed's `latest` and the Trainer's "largest number" can both name a folder that a kill left half written. Here a
checkpoint counts once its COMPLETE.json, written last and atomically, lists every file with the size it still has.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

MARKER = "COMPLETE.json"


def mark_complete(folder: Path) -> None:
    """Record the files of a finished checkpoint. Call on one rank, after all ranks have written theirs."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    partial = folder / (MARKER + ".partial")
    with partial.open("w") as file:
        json.dump(sizes, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MARKER)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def unfinished(folder: Path) -> str | None:
    """Why a folder is not whole, or None: its marker lists every file in the size that it has."""
    try:
        sizes = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return f"no {MARKER}"
    wrong = [n for n, size in sizes.items() if not (folder / n).is_file() or (folder / n).stat().st_size != size]
    return f"{wrong[0]} is missing or has another size than was written" if wrong else None


def is_complete(folder: Path) -> bool:
    return unfinished(folder) is None


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def numbered(run: Path) -> list[Path]:
    """Every checkpoint folder below `run`, whole or not, oldest step first."""
    return sorted((p for p in run.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()), key=step_of)


def latest_complete(run: Path) -> Path | None:
    """The newest whole checkpoint below `run`, or None."""
    return next((folder for folder in reversed(numbered(run)) if is_complete(folder)), None)


def keep_newest(run: Path, count: int) -> None:
    """Delete all but the newest `count` whole checkpoints. Call on one rank, once the newest is marked.

    What a kill left half written goes too.
    """
    whole = [folder for folder in numbered(run) if is_complete(folder)]
    for folder in numbered(run):
        if folder not in whole[-count:]:
            shutil.rmtree(folder)
