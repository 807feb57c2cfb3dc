"""No task drowns the others."""

from __future__ import annotations

import random
from collections import defaultdict

from mmkd.errors import ConfigError
from mmkd.synthesis.selection.registry import Rows, register


@register("balance")
def balance(rows: Rows, most: int | None = None, ratio: float | None = None) -> dict[int, str]:
    """Keeps at most so many rows of each task, drawn by the seed.

    Args:
        most: rows of a task.
        ratio: the same as a multiple of the smallest task's rows, from 1.

    Raises: ConfigError unless one of both is given.
    """
    given = [value for value in (most, ratio) if value is not None]
    if len(given) != 1 or given[0] < 1:
        raise ConfigError(f"balance has most {most} and ratio {ratio}; give one of them, from 1.")
    tasks: defaultdict[str, list[int]] = defaultdict(list)
    for index, record in rows:
        tasks[record.task].append(index)
    if not tasks:
        return {}
    limit = most if most is not None else int((ratio or 1) * min(map(len, tasks.values())))
    dropped = {}
    for task, members in tasks.items():
        kept = set(random.Random(f"{rows.seed}/{task}").sample(members, min(limit, len(members))))
        reason = f"task {task or 'without a name'} has {len(members):,} rows, {limit:,} are kept"
        dropped |= {index: reason for index in members if index not in kept}
    return dropped
