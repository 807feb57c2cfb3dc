"""Requests that got nothing: when that is the server's fault, and when the request's own."""

from __future__ import annotations

from mmkd.data.rejected import MOST_BAD, too_many
from mmkd.errors import DataError
from mmkd.synthesis.requests import Answer, Status
from mmkd.synthesis.store import Store

GIVEN_UP = 3  # runs in which a request got no reply; then it may be the request that the server cannot bear
FEWEST_REFUSED = 5  # requests, all of them refused, that say it is no single one that the server does not take


class Misses:
    """Counts the requests of one `Asker.answer` that got nothing."""

    def __init__(self, model: str):
        self.model, self.seen, self.refused = model, 0, 0
        self.unanswered: list[str] = []  # keys
        self._why: dict[Status, str] = {}  # of the last one of either kind
        self._last = ""

    def count(self, answer: Answer) -> None:
        """Raises DataError once `too_many` requests got no reply or were refused."""
        self.seen += 1
        if answer.status is Status.UNANSWERED:
            self.unanswered.append(answer.key)
        elif answer.status is Status.REFUSED:
            self.refused += 1
        if answer.status in (Status.UNANSWERED, Status.REFUSED):
            self._last = self._why[answer.status] = answer.reason
        missed = self.refused + len(self.unanswered)
        if too_many(missed, self.seen):
            raise DataError(
                f"{missed} of {self.seen} requests to {self.model} got no reply or were refused, "
                f"more than {MOST_BAD:.0%}; the last one: {self._last}. Every answer so far is kept; see to "
                "the server and run again to go on."
            )

    def require_replies(self, store: Store) -> None:
        """Raises DataError where the server owes replies, so that what was asked for is not closed without them.

        No reply is the server's fault, and the next run asks again. Only where a request got none in three runs, and
        such are at most a tenth of all, is it taken for the request's own, so that one row does not stop a job for
        ever; it then stays without an answer. A refusal is the request's own, unless all of at least five were.
        """
        stubborn = [key for key in self.unanswered if _runs_without(store, key) >= GIVEN_UP]
        owed = len(self.unanswered) - (len(stubborn) if len(stubborn) <= MOST_BAD * self.seen else 0)
        if owed:
            why = self._why[Status.UNANSWERED]
            raise DataError(
                f"{owed} of {self.seen} requests to {self.model} got no reply; the last one: {why}. Every answer that "
                f"came is kept in {store.folder}: see to the server and run again, and only what is missing is asked."
            )
        if self.refused == self.seen >= FEWEST_REFUSED:
            raise DataError(
                f"all {self.seen} requests to {self.model} were refused; the last one: {self._last}. Nothing was "
                "paid; mend what the server names, in the config or at the server, and run again."
            )


def _runs_without(store: Store, key: str) -> int:
    return sum(entry.status is Status.UNANSWERED for entry in store.entries(key))
