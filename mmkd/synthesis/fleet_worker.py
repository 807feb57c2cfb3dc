"""What one of Ray's workers does: a batch of requests, answered into a shard of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmkd.config.synthesis_schema import ModelSection
from mmkd.errors import DataError, MmkdError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Backend
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.in_process import open_local
from mmkd.synthesis.paid import Paid
from mmkd.synthesis.requests import Answer, Request, Usage
from mmkd.synthesis.shards import shard_of
from mmkd.synthesis.store import Entry, Store

if TYPE_CHECKING:
    from mmkd.synthesis.local import LocalModel

COLUMN = "batch"
DEATHS = 3  # of workers that got nowhere with a batch: then it is the batch that ends them


@dataclass(frozen=True)
class Batch:
    """Requests for one worker.

    Attributes:
        name: of the shard.
        paid: replies to them that were kept before and are no answers: they count as tries.
    """

    name: str
    requests: tuple[Request, ...]
    paid: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Done:
    """What became of a batch.

    Attributes:
        answers: of the requests that ended.
        left: requests that did not.
        trouble: why there are such.
    """

    name: str
    answers: tuple[Answer, ...]
    left: tuple[Request, ...] = ()
    trouble: MmkdError | None = None


@dataclass(frozen=True)
class Orders:
    """The same for all workers.

    Attributes:
        section: the model, its rates and budget those of one worker and one request.
        model: its identity, as the process that starts the workers knows it; None where it is to be found out.
        answered: see `Endpoint`.
        home: the working directory in which relative paths are meant.
        folder: of the store that the shards go into.
    """

    section: ModelSection
    reasks: int
    home: str
    folder: Path
    model: str | None = None
    answered: bool = False


class Worker:
    """Made once on each worker, so that weights are loaded once; then called with batches.

    A batch that Ray gives to another worker, because the first one died, goes on from the shard: what came is not asked
    again. What is wrong with this node is told with each batch, because Ray tells only that a worker could not be made.
    """

    def __init__(self, orders: Orders):
        self.orders = orders
        self.trouble: MmkdError | None = None
        try:
            self.local = self._load()
        except MmkdError as error:
            self.trouble = error

    def __call__(self, batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Column of Batch -> column of Done."""
        done = np.empty(len(batches[COLUMN]), dtype=object)
        for index, batch in enumerate(batches[COLUMN]):
            trouble = self.trouble or self._begin(batch)
            done[index] = Done(batch.name, (), (), trouble) if trouble else self.ask(batch)
        return {COLUMN: done}

    def ask(self, batch: Batch) -> Done:
        answers: list[Answer] = []
        trouble: MmkdError | None = None
        try:
            with self._asker(batch) as asker:
                for answer in asker.answer(batch.requests):
                    answers.append(answer)
        except MmkdError as error:
            trouble = error
        ended = {id(answer.request) for answer in answers}
        left = tuple(request for request in batch.requests if id(request) not in ended)
        return Done(batch.name, tuple(answers), left, trouble)

    def _asker(self, batch: Batch) -> Asker:
        store = Store(shard_of(self.orders.folder, batch.name))
        try:
            return Asker(self._backend(store, batch), store, self.orders.reasks, check=self._check())
        except BaseException:
            store.close()
            raise

    def _check(self) -> ImageCheck | None:
        """By what the process that starts the workers found out, or another worker; else this one finds out."""
        endpoint = self.orders.section.endpoint
        return ImageCheck(endpoint, self.orders.folder) if endpoint is not None and endpoint.check_images else None

    def _begin(self, batch: Batch) -> DataError | None:
        """Note that the batch was begun; what is wrong where too many workers ended at the same place of it. Ray
        itself would try for ever."""
        shard = shard_of(self.orders.folder, batch.name)
        shard.mkdir(parents=True, exist_ok=True)
        journal, notes = shard / "journal.jsonl", shard / "begun"
        at = str(journal.stat().st_size if journal.exists() else 0)
        begun = notes.read_text().split() if notes.exists() else []
        if begun[-DEATHS:] == [at] * DEATHS:
            return DataError(
                f"{DEATHS} workers ended one after the other while they answered one batch ({shard}), most likely for "
                "want of memory. Every answer so far is kept. Lower batch_size, or give each worker more room "
                "(fleet.gpus, fleet.cpus), and run again."
            )
        with notes.open("a") as file:
            file.write(at + "\n")
        return None

    def _load(self) -> LocalModel | None:
        """Raises DataError where this node does not see the folder, or has other weights; what `open_local` raises."""
        node = os.uname().nodename
        if not Path(self.orders.home).is_dir() or not self.orders.folder.is_dir():
            raise DataError(
                f"node {node} does not see {self.orders.home} or {self.orders.folder}; workers need the file system of "
                "the process that starts them."
            )
        os.chdir(self.orders.home)
        if self.orders.section.endpoint is not None:
            return None
        model = open_local(self.orders.section)
        if self.orders.model not in (None, model.model):
            raise DataError(
                f"node {node} has {model.model} where {self.orders.model} is asked: other weights or another "
                "precision; all workers need the same."
            )
        return model

    def _backend(self, store: Store, batch: Batch) -> Backend:
        """The worker's model, or the endpoint with the batch's part of the budget."""
        for entry in batch.paid:
            if entry not in store.entries(entry.key):
                store.append(entry)
        if self.local is not None:
            return self.local
        from mmkd.synthesis.client import Endpoint

        section = self.orders.section.endpoint
        budget, size = section.budget, len(batch.requests)
        part = {
            "tokens": None if budget.tokens is None else budget.tokens * size,
            "cost": None if budget.cost is None else budget.cost * size,
        }
        # What the shard paid on a worker that died counts; what was paid before it was made does not.
        paid = sum((entry.usage for entry in store.entries() if entry not in batch.paid), Usage())
        section = section.model_copy(update={"budget": budget.model_copy(update=part)})
        return Endpoint(section, Paid(paid), self.orders.answered)
