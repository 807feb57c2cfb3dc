"""How many rows each source had when a checkpoint was written: the order of an epoch hangs on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmkd.errors import ConfigError

FILE = "rows.json"
RowCounts = Mapping[str, int | None]  # by the path of a source in the config; a stream has no number


def write_row_counts(checkpoint: Path, counts: RowCounts) -> None:
    (checkpoint / FILE).write_text(json.dumps(counts))


def require_row_counts(checkpoint: Path, counts: RowCounts) -> None:
    """Raises ConfigError where a source has more or fewer rows than it had at `checkpoint`: going on, a run would skip
    some and read others twice."""
    written = checkpoint / FILE
    if not written.exists():  # of an mmkd that wrote none
        return
    before = json.loads(written.read_text())
    for source, count in counts.items():
        if before.get(source) != count:
            raise ConfigError(
                f"{source} has {count} rows, and had {before.get(source)} when {checkpoint} was written: going on, "
                "the run would skip rows or read them twice. Put the source back as it was, or name another run.dir."
            )
