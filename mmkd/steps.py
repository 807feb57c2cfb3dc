"""Steps of a long job, each done once: a job that was killed goes on with the step that it was in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.whole_files import write_whole


class Steps:
    """Keeps what each step returned, as JSON, in `folder`/NAME.json with the seconds it took.

    A step that was under way is begun anew, so what it does by itself has to bear that: models' answers by their
    store, a training by --resume, files by being written whole.

    Attributes:
        seconds: of each step of this job, in this run of it or an earlier one.
    """

    def __init__(self, folder: Path):
        self.folder, self.seconds = folder, dict[str, float]()
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, work: Callable[[], Any], begin: Callable[[], None] = lambda: None) -> Any:
        """The result of `work`, or what it returned in an earlier run. `begin` is called before work is done."""
        kept = self.folder / f"{name}.json"
        if not kept.exists():
            begin()
            started = time.perf_counter()
            result = work()
            seconds = round(time.perf_counter() - started, 1)
            write_whole(kept, [json.dumps({"seconds": seconds, "result": result}, indent=1, default=str)])
        found = json.loads(kept.read_text())
        self.seconds[name] = found["seconds"]
        return found["result"]
