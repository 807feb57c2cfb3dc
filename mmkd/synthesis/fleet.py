"""An Asker whose calls are made by many workers, through Ray Data: on this machine, or on a cluster.

Requests go out in batches; each batch has a shard, a store of its own, which is merged into the one store when the
batch is done, and then removed. So no two processes write one file, whoever is killed loses only calls on their way,
and how many workers there are leaves no trace: the next run, with another number of them or with none, merges what is
left before it asks.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.config.synthesis_schema import FleetSection, ModelSection
from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError, MmkdError
from mmkd.synthesis.asking import Asker, answer_of, first_usage, unreadable
from mmkd.synthesis.backends import Call
from mmkd.synthesis.fleet_worker import COLUMN, Batch, Done, Orders, Worker
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.limits import BudgetSpent, told
from mmkd.synthesis.misses import Misses
from mmkd.synthesis.paid import Paid
from mmkd.synthesis.requests import Answer, Completion, Request, Status, Usage
from mmkd.synthesis.shards import merge
from mmkd.synthesis.store import Store
from mmkd.synthesis.tally import Tally

try:
    import pandas
    import ray
    import ray.data
except ImportError as error:
    raise ConfigError(f"model.fleet needs {error.name}: pip install 'mmkd[ray]'.") from error

CALLS_OF_A_BATCH = 32  # for each that keeps the model busy: a batch's end, when fewer are on their way, is a small part


class Fleet(Asker):
    """See `Asker`.

    Requests are read to the end, and their pictures hashed, before the first is sent; this process holds 100 bytes of
    each, Ray's object store (which spills to disk) the requests themselves. Equal ones are asked once.

    A budget is parted among the batches; what they leave of it is spent by one worker in the end, so that it is neither
    passed nor left. A rate is parted among the workers.

    Raises: ConfigError where Ray has not the resources of one worker; what a worker raises that loads the model.
    """

    def __init__(
        self,
        section: ModelSection,
        fleet: FleetSection,
        store: Store,
        reasks: int,
        tally: Tally | None = None,
        all_replied: bool = False,
        paid: Paid | None = None,
        check: ImageCheck | None = None,
    ):
        self.section, self.fleet, self.store, self.reasks = section, fleet, store, reasks
        self.all_replied, self._paid = all_replied, paid or Paid()
        self.check, self._looked = check, False
        self.tally = tally or Tally()
        self._names = count()
        connect(fleet)
        self.backend = self._named()
        self.batch = fleet.batch or CALLS_OF_A_BATCH * self.backend.concurrency

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """See `Asker.answer`. Whoever stops taking answers ends the workers: their calls on their way are lost."""
        misses, under_way = Misses(self.backend.model), set[bytes]()
        batches: list[Any] = []  # of ray.ObjectRef
        new: list[tuple[str, Request]] = []
        twins: list[Request] = []  # of requests that are under way
        for request in requests:
            try:
                key = self._key(request)
            except BadRow as error:
                answer = unreadable(request, self.backend.model, error)
                misses.count(answer)
                yield answer
                continue
            final = self.store.final(key)
            if final is None and request.images and not self._looked:
                self._look(request)
                final = self.store.final(key)
            if final is not None:
                self.tally.stored(final)
                yield answer_of(final, request)
            elif (short := bytes.fromhex(key)) in under_way:
                twins.append(request)
            else:
                under_way.add(short)
                new.append((key, request))
                if len(new) == self.batch:
                    batches.append(self._put(new))
                    new = []
        if new:
            batches.append(self._put(new))
        yield from self._answered(batches, len(under_way), misses)
        for request in twins:
            yield self._twin(request)
        if self.all_replied:
            misses.require_replies(self.store)

    def close(self) -> None:
        self.store.close()

    def _named(self) -> Elsewhere:
        """Who the workers ask. For weights, which are what they are known by, one worker loads them."""
        endpoint = self.section.endpoint
        if endpoint is not None:
            concurrency = endpoint.concurrency * (1 + len(endpoint.replicas))
            return Elsewhere(endpoint.model, endpoint.license, concurrency, endpoint.beside)
        orders = Orders(self.section, self.reasks, os.getcwd(), self.store.folder.resolve())
        task = ray.remote(num_cpus=self.fleet.cpus, num_gpus=self.fleet.gpus, max_calls=1)(_known)
        found = ray.get(task.remote(orders))
        if isinstance(found, MmkdError):
            raise found
        return Elsewhere(*found)

    def _answered(self, batches: Sequence[Any], total: int, misses: Misses) -> Iterator[Answer]:
        """Answers of all batches; those whose part of the budget ran out go again, one by one, with what is left."""
        short: list[tuple[Any, int]] = []
        for done in self._run(batches, total):
            yield from self._taken(done, misses)
            if isinstance(done.trouble, BudgetSpent):
                short.append((self._put([(self._key(request), request) for request in done.left]), len(done.left)))
            elif done.trouble is not None:
                raise done.trouble
        for left, size in short:
            for done in self._run([left], size):
                yield from self._taken(done, misses)
                if isinstance(done.trouble, BudgetSpent):
                    raise self._spent()
                if done.trouble is not None:
                    raise done.trouble

    def _spent(self) -> BudgetSpent:
        endpoint = self.section.endpoint
        return BudgetSpent(told(endpoint.budget, self._paid.spent, "what is left does not cover the next call"))

    def _taken(self, done: Done, misses: Misses) -> Iterator[Answer]:
        """The answers of a batch, its shard merged before they are handed on."""
        for entry in merge(self.store, done.name):
            self.tally.kept(entry)
            self._paid.add(entry.usage)
        for answer in done.answers:
            misses.count(answer)
            yield answer

    def _look(self, request: Request) -> None:
        """Find out by the first request with pictures whether the server reads them. Where it got no replies that tell,
        workers find out by theirs."""
        self._looked = True
        if self.check is not None and not self.check.passed:
            pair = self.check.pair(request)
            used = {answer.request.id: first_usage(self.store, answer) for answer in self.answer(pair)}
            self.check.decide(request, *(used[one.id] for one in pair))

    def _run(self, batches: Sequence[Any], total: int) -> Iterator[Done]:
        """The batches through the workers, as they end."""
        if not batches:
            return
        pool = ray.data.ActorPoolStrategy(size=min(self.fleet.workers, len(batches)))
        rows = ray.data.from_pandas_refs(list(batches)).map_batches(
            Worker,
            fn_constructor_args=(self._orders(total),),
            batch_size=None,  # a block is one batch
            compute=pool,
            num_cpus=self.fleet.cpus,
            num_gpus=self.fleet.gpus,
        )
        for row in rows.iter_rows():
            yield row[COLUMN]

    def _orders(self, total: int) -> Orders:
        section = self.section
        if section.endpoint is not None:
            part = parted(section.endpoint, self.fleet.workers, self._paid.spent, total)
            section = section.model_copy(update={"endpoint": part})
        model = self.backend.model
        home, folder = os.getcwd(), self.store.folder.resolve()
        return Orders(section, self.reasks, home, folder, model, self.store.answered(model))

    def _put(self, requests: Sequence[tuple[str, Request]]) -> Any:
        """A block of one row, in Ray's object store."""
        paid = [entry for key, _ in requests for entry in self.store.entries(key) if entry.status is Status.UNUSABLE]
        column = np.empty(1, dtype=object)
        column[0] = Batch(f"{next(self._names):08d}", tuple(request for _, request in requests), tuple(paid))
        return ray.put(pandas.DataFrame({COLUMN: pandas.Series(column)}))

    def _key(self, request: Request) -> str:
        return self.key(request.content())

    def _twin(self, request: Request) -> Answer:
        key = self._key(request)
        entry = self.store.last(key)
        if entry is None:
            return Answer(request, key, Status.UNANSWERED, self.backend.model, kind="no reply", reason="see its twin")
        return replace(answer_of(entry, request), usage=Usage())


@dataclass(frozen=True)
class Elsewhere:
    """A back end of other processes: who it is. See `Backend`."""

    model: str
    license: str | None
    concurrency: int
    extra_body: dict[str, Any] = field(default_factory=dict)

    async def complete(self, call: Call) -> Completion:
        raise NotImplementedError("workers make the calls")

    async def close(self) -> None: ...


def _known(orders: Orders) -> tuple[str, str | None, int] | MmkdError:
    worker = Worker(orders)
    if worker.trouble is not None:
        return worker.trouble
    return worker.local.model, worker.local.license, worker.local.concurrency


def parted(section: EndpointSection, workers: int, spent: Usage, requests: int) -> EndpointSection:
    """The endpoint as one worker of several may ask it: with its part of the rates, and one request's part of what is
    left of the budget."""
    budget = section.budget
    left = {
        "tokens": None if budget.tokens is None else max(0, budget.tokens - spent.tokens) / requests,
        "cost": None if budget.cost is None else max(0.0, budget.cost - spent.cost) / requests,
    }
    rates = {
        name: None if (limit := getattr(section, name)) is None else limit / workers
        for name in ("requests_per_minute", "tokens_per_minute")
    }
    return section.model_copy(update={"budget": budget.model_copy(update=left), **rates})


def connect(fleet: FleetSection) -> None:
    """To the cluster of RAY_ADDRESS; without one, to workers of this machine, which end with this process.

    Raises: ConfigError where this machine has not the resources of one worker.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers that wait for servers need no core each; one more is for what Ray Data does itself.
    cores = max(os.cpu_count() or 1, math.ceil(fleet.workers * fleet.cpus) + 1)
    ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if gpus < fleet.gpus:
        raise ConfigError(
            f"model.fleet.gpus is {fleet.gpus:g}, and this machine has {gpus:g}. Start a cluster (ray start --head) "
            "and set RAY_ADDRESS, or lower gpus."
        )
