"""What models were paid: what budgets are held against."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mmkd.synthesis.requests import Usage
from mmkd.synthesis.shards import FOLDER, merge_left
from mmkd.synthesis.store import Store


class Paid:
    """What a model was paid, and what calls on their way may cost. Askers that share a budget share one of these, each
    in a thread and an event loop of its own.

    Args:
        spent: what stores paid this model before.
    """

    def __init__(self, spent: Usage | None = None):
        self.spent, self.reserved, self.calls = spent or Usage(), Usage(), 0
        self.lock = threading.Lock()

    def add(self, used: Usage) -> None:
        with self.lock:
            self.spent += used


Purse = defaultdict[str, Paid]  # of a job's models, by name


def purse_of(out: Path) -> Purse:
    """What the stores anywhere in a job's folder paid each model, for all who ask for the job.

    Raises: DataError where another process writes one of them.
    """
    purse = Purse(Paid)
    for store in stores_in(out):
        for model in {name for name, _, _ in store.counts()}:
            purse[model].add(store.spent(model))
    return purse


def stores_in(out: Path) -> Iterator[Store]:
    """The stores anywhere in a folder, each open until the next one is; with what a killed fleet has left of them.

    Raises: DataError where another process writes one of them.
    """
    for journal in sorted(out.rglob("journal.jsonl")):
        if FOLDER in journal.relative_to(out).parts:
            continue
        with Store(journal.parent) as store:
            merge_left(store)
            yield store
