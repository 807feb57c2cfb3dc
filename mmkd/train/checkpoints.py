"""Whole checkpoints only.

DeepSpeed's `latest` and the Trainer's "largest number" can both name a folder that a kill left half written. Here a
checkpoint counts once its COMPLETE.json, written last and atomically, lists every file with the size it still has.
"""

from __future__ import annotations

import json
import os
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


def is_complete(folder: Path) -> bool:
    """True where every file that the marker lists is there in its full size."""
    try:
        sizes = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def latest_complete(run: Path) -> Path | None:
    """The newest whole checkpoint below `run`, or None."""
    found = [p for p in run.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit() and is_complete(p)]
    return max(found, key=step_of, default=None)
