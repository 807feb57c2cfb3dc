"""Requests in, answers out: each is asked until it is answered or given up, and every reply is kept first."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mmkd.data.rejected import BadRow
from mmkd.errors import DataError
from mmkd.synthesis.backends import Backend, Call, NoReply, Refused
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.misses import Misses
from mmkd.synthesis.replies import Problem, next_try, read_reply
from mmkd.synthesis.requests import Answer, Completion, Request, Status, Usage, digest, request_key
from mmkd.synthesis.store import Entry, Store
from mmkd.synthesis.tally import Tally
from mmkd.synthesis.visible import visible

LOST = "broken reply"  # a kind of unusable entry that is no try of its own
READY_AHEAD = 2  # answers, in multiples of the back end's concurrency, that may wait to be taken


class Asker:
    """Asks one back end, keeps what comes in one store, and closes both in the end: `with Asker(..) as asker`.

    It runs an event loop in a thread of its own, in which the back end lives.

    Args:
        reasks: how often a reply that is no answer is asked for again.
        tally: counts what happens; shown by `mmkd.synthesis.progress`.
        all_replied: `answer` raises at its end where the server owes replies: for engines that close what they did.
        check: of a server that may drop pictures; None for one that is believed, and for models of this process.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        reasks: int = 2,
        tally: Tally | None = None,
        all_replied: bool = False,
        check: ImageCheck | None = None,
    ):
        self.backend, self.store, self.reasks = backend, store, reasks
        self.all_replied, self.check = all_replied, check
        self._probe: asyncio.Future[Answer | None] | None = None
        self.tally = tally or Tally()
        self._arriving: dict[str, str] = {}  # ids of replies that are being looked at, and whose they are
        self._asked: dict[str, asyncio.Future[Answer]] = {}  # on their way, so that equal requests are paid once
        self._runs: dict[_Run, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        # daemon: a second Ctrl-C need not wait for calls on their way
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One Answer for each request, in the order in which they come.

        What the store has is not asked again. `requests` is read as places become free, in the asker's thread, and may
        be longer than memory. Whoever stops taking answers stops the asking; calls on their way are awaited and kept.

        Raises: BudgetSpent, ConfigError (no call can succeed, or pictures are not read), DataError once `too_many`
            requests got no reply or were refused: each after the calls on their way have ended, with all
            answers so far kept. With `all_replied`, after the last answer, what `Misses.require_replies` raises.
        """
        run = _Run(self, iter(requests))
        self._runs[run] = asyncio.run_coroutine_threadsafe(run.work(), self._loop)
        try:
            while (answer := run.ready.get()) is not None:
                self._loop.call_soon_threadsafe(run.places.release)
                yield answer
        finally:
            self._end(run)
        if self.all_replied:
            run.misses.require_replies(self.store)

    def _end(self, run: _Run) -> None:
        """Wait for its calls on their way. Raises what its workers raised."""
        if (working := self._runs.pop(run, None)) is not None:  # else `close` has done it
            self._loop.call_soon_threadsafe(run.stop)
            working.result()

    def close(self) -> None:
        """Calls on their way, also of an `answer` that nobody takes from any more, are awaited and kept."""
        for run in list(self._runs):
            with suppress(Exception):  # whoever took from it is not there to be told
                self._end(run)
        asyncio.run_coroutine_threadsafe(self.backend.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.store.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def key(self, content: dict[str, Any]) -> str:
        """The name under which the store keeps the answer to a request of this content."""
        extra = self.backend.extra_body
        return request_key(self.backend.model, content | ({"extra_body": extra} if extra else {}))

    async def one(self, request: Request, probing: bool = False) -> Answer:
        """The answer to one request, from the store or the back end; see `answer` for what it raises."""
        try:
            content = await asyncio.to_thread(request.content)
        except BadRow as error:
            return unreadable(request, self.backend.model, error)
        key = self.key(content)
        if (kept := await self._kept(key, request)) is not None:
            return kept
        if request.images and self.check is not None and not probing:
            answer = await self._reads_images(request, self.check) or await self._kept(key, request)
            if answer is not None:
                return answer
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        try:
            answer = await self._ask(request, key, content)
            future.set_result(answer)
            return answer
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # nobody may be waiting for it
            raise
        finally:
            del self._asked[key]

    async def _kept(self, key: str, request: Request) -> Answer | None:
        """The answer to a request that is on its way, or that the store has."""
        if key in self._asked:
            return replace(await asyncio.shield(self._asked[key]), request=request, usage=Usage())
        final = self.store.final(key)
        if final is None:
            return None
        self.tally.stored(final)
        return answer_of(final, request)

    async def _reads_images(self, request: Request, check: ImageCheck) -> Answer | None:
        """Find out by the first request with pictures, whose answer is returned; all others that have some wait for it.
        Where it got no replies that tell, those go on, and the next one finds out."""

        async def probe() -> Answer | None:
            if check.passed:
                return None
            pair = check.pair(request)
            ended = await asyncio.gather(*(self.one(one, probing=True) for one in pair), return_exceptions=True)
            for one in ended:
                if isinstance(one, BaseException):
                    raise one
            answers = [one for one in ended if isinstance(one, Answer)]
            check.decide(request, *(first_usage(self.store, one) for one in answers))
            if not check.passed:
                self._probe = None
            return answers[0]

        if self._probe is not None:
            await asyncio.shield(self._probe)
            return None
        self._probe = asyncio.ensure_future(probe())
        return await asyncio.shield(self._probe)

    async def _ask(self, request: Request, key: str, content: dict[str, Any]) -> Answer:
        described = {"id": request.id, "prompt": request.prompt, "license": request.license, **content}
        blank = Entry(key, Status.UNANSWERED, self.backend.model, described, license=self.backend.license)
        paid = [entry for entry in self.store.entries(key) if entry.status is Status.UNUSABLE and entry.kind != LOST]
        spent = sum((entry.usage for entry in paid), Usage())
        text, problem = _last(request, paid)
        tries = len(paid)
        while True:
            turns, sampling = next_try(request, tries, text, problem)
            call = Call(f"{key}-{tries}", turns, request.images, sampling, request.schema)
            try:
                reply = await self.backend.complete(call)
            except NoReply as error:
                spent += self._lost(blank, error.lost)
                return self._keep(replace(blank, kind=error.kind, reason=str(error)), request, spent)
            except (Refused, BadRow) as error:
                spent += self._lost(blank, error.lost if isinstance(error, Refused) else Usage())
                entry = replace(blank, status=Status.REFUSED, kind=error.kind, reason=str(error))
                return self._keep(entry, request, spent)
            spent += self._lost(blank, reply.lost)
            value = self._seen_before(key, reply) or await self._unread(request, reply) or read_reply(request, reply)
            spent += reply.usage
            entry = replace(
                blank, text=reply.text, finish=reply.finish, usage=reply.usage, served_by=reply.served_by,
                response_id=reply.response_id, tokens=reply.tokens,
            )  # fmt: skip
            if not isinstance(value, Problem):
                return self._keep(replace(entry, status=Status.DONE), request, spent)
            tries, text, problem = tries + 1, reply.text, value
            over = problem.final or tries > self.reasks
            status = Status.REJECTED if over else Status.UNUSABLE
            answer = self._keep(replace(entry, status=status, kind=value.kind, reason=value.reason), request, spent)
            if over:
                return answer

    def _keep(self, entry: Entry, request: Request, spent: Usage) -> Answer:
        self.store.append(replace(entry, time=time.time()))
        self._arriving.pop(entry.response_id or "", None)
        self.tally.kept(entry)
        return replace(answer_of(entry, request), usage=spent)

    def _lost(self, blank: Entry, lost: Usage) -> Usage:
        """What a call may have cost beside its reply, kept as an entry of its own."""
        if lost != Usage():
            reason = "what came first was no chat completion, and may have been charged"
            entry = replace(blank, status=Status.UNUSABLE, kind=LOST, reason=reason, usage=lost, time=time.time())
            self.store.append(entry)
            self.tally.kept(entry)
        return lost

    async def _unread(self, request: Request, reply: Completion) -> Problem | None:
        if self.check is None or not request.images:
            return None
        reason = await asyncio.to_thread(self.check.unread, request, reply.usage)  # which looks at files
        return Problem("pictures not read", reason) if reason else None

    def _seen_before(self, key: str, reply: Completion) -> Problem | None:
        """A server or proxy that mixes up its replies gives one twice, under one id."""
        if not reply.response_id:
            return None
        owner = self.store.owner(reply.response_id) or self._arriving.get(reply.response_id)
        if owner is None:
            self._arriving[reply.response_id] = key
            return None
        other = "this request" if owner == key else f"request {owner[:12]}"
        return Problem(
            "duplicated reply",
            f"its id {visible(str(reply.response_id)[:80])} came before, for {other}; if this server gives every reply "
            "one id, say unique_ids: false",
        )


class _Run:
    """One `Asker.answer`; all but `ready` belongs to the asker's thread."""

    def __init__(self, asker: Asker, requests: Iterator[Request]):
        self.asker, self.requests = asker, requests
        self.ready: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()  # None ends it
        self.stopped, self.misses = False, Misses(asker.backend.model)
        self.places = asyncio.Semaphore(READY_AHEAD * asker.backend.concurrency)

    async def work(self) -> None:
        """Raises the first error of a worker, after all of them have ended."""
        workers = [asyncio.create_task(self._worker()) for _ in range(self.asker.backend.concurrency)]
        try:
            ended = await asyncio.gather(*workers, return_exceptions=True)
        finally:
            self.ready.put(None)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def stop(self) -> None:
        """No further request is begun; workers that wait for a place end."""
        self.stopped = True
        for _ in range(self.asker.backend.concurrency):
            self.places.release()

    async def _worker(self) -> None:
        try:
            while True:
                await self.places.acquire()
                request = None if self.stopped else next(self.requests, None)
                if request is None:
                    return
                answer = await self.asker.one(request)
                self.ready.put(answer)
                self.misses.count(answer)
        except BaseException:
            self.stop()  # the others end what they have begun
            raise


def first_usage(store: Store, answer: Answer) -> Usage | None:
    """Of the first reply to a request: later tries may have longer prompts."""
    silent = (Status.REFUSED, Status.UNANSWERED)
    replies = (one for one in store.entries(answer.key) if one.status not in silent and one.kind != LOST)
    return next((one.usage for one in replies), None)


def answer_of(entry: Entry, request: Request) -> Answer:
    """A kept entry as the answer to `request`, with what was paid for this entry alone."""
    if entry.status is not Status.DONE:
        return Answer(request, entry.key, entry.status, entry.model, "", None, entry.kind, entry.reason, entry.usage)
    # Without its finish reason: what was taken for whole when it was paid for stays done.
    value = read_reply(request, Completion(entry.text, entry.usage))
    if isinstance(value, Problem):
        raise DataError(f"entry {entry.key} of the store says {entry.text[:80]!r}, which is no answer: {value.reason}.")
    return Answer(
        request, entry.key, entry.status, entry.model, entry.text, value, usage=entry.usage, tokens=entry.tokens
    )


def _last(request: Request, paid: list[Entry]) -> tuple[str, Problem | None]:
    """The last reply of an earlier run, and what was wrong with it."""
    if not paid:
        return "", None
    entry = paid[-1]
    value = read_reply(request, Completion(entry.text, entry.usage, entry.finish))
    return entry.text, value if isinstance(value, Problem) else Problem(entry.kind, entry.reason)


def unreadable(request: Request, model: str, error: BadRow) -> Answer:
    """Nothing was asked and nothing is kept: an image that is mended gets another key."""
    key = digest({"model": model, "id": request.id, "problem": str(error)})
    return Answer(request, key, Status.REFUSED, model, kind=error.kind, reason=str(error))
