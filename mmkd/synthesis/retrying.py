"""Which failures of an endpoint pass, which speak of one call, and which of all calls."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import openai
import tenacity
from pydantic import ValidationError

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError
from mmkd.synthesis.backends import Refused
from mmkd.synthesis.visible import visible

LONGEST_WAIT = 60.0  # seconds between two tries of a call
LONGEST_RETRY_AFTER = 300.0  # what a server may ask for
MOST_MISSHAPEN = 3  # whole replies to a call that are JSON and no chat completion
PASSING = {408, 409, 425, 429}
OF_ALL_CALLS = {401, 402, 403, 404, 405, 407, 410}


class Trouble(Exception):
    """No reply this time; the call may be sent again.

    Args:
        kind: a few words by which reports count.
        retry_after: seconds that the server asked for; 0 where it did not.
    """

    def __init__(self, kind: str, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.kind, self.retry_after = kind, retry_after


class Misshapen(Trouble):
    """A whole reply that is JSON and no chat completion, which no waiting mends."""


@dataclass
class Clock:
    """Of one call: seconds that it waited for its turn, which are not the server's to answer for."""

    waited: float = 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - began


def retried(seconds: float, source: random.Random, clock: Clock) -> tenacity.AsyncRetrying:
    """Tries of one call, further and further apart, until `seconds` have passed while the clock was not stopped, or
    MOST_MISSHAPEN replies have come."""
    misshapen = 0

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        # Full jitter: calls that failed together do not come back together.
        jittered = source.uniform(0, min(LONGEST_WAIT, 0.5 * 2**state.attempt_number))
        return jittered + (error.retry_after if isinstance(error, Trouble) else 0.0)

    def over(state: tenacity.RetryCallState) -> bool:
        nonlocal misshapen
        misshapen += state.outcome is not None and isinstance(state.outcome.exception(), Misshapen)
        return (
            misshapen == MOST_MISSHAPEN
            or (state.seconds_since_start or 0.0) - clock.waited + state.upcoming_sleep >= seconds
        )

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Trouble),
        wait=wait,
        stop=over,
        reraise=True,
    )


def trouble_of(error: Exception, section: EndpointSection, answered: bool = False) -> Exception:
    """Trouble, Refused, or ConfigError, with what the server said.

    Args:
        answered: it has answered another call, so a 403 speaks of this one: routers give it to what they moderate.
    """
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Trouble("timeout", f"{section.url}: no whole reply within {section.timeout:g} s")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, section, answered)
    if isinstance(error, openai.APIConnectionError):
        return Trouble("connection", f"{section.url}: {error.__cause__ or error}")
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the reply"
        told = f"no chat completion: {place}: {first['msg']}"
        if isinstance(first["input"], dict) and (why := first["input"].get("error")):
            return Trouble("broken reply", f"{told}; it says {visible(str(why)[:300])}")  # of a router, with a 200
        return (Trouble if first["type"] == "json_invalid" else Misshapen)("broken reply", told)
    return Trouble("broken reply", f"{type(error).__name__}: {error}")


def _of_status(error: openai.APIStatusError, section: EndpointSection, answered: bool) -> Exception:
    status = error.status_code
    said = f"HTTP {status}: {visible(str(error)[:300])}"
    if status in PASSING or status >= 500:
        kind = "rate limit" if status == 429 else f"HTTP {status}"
        return Trouble(kind, f"{section.url}: {said}", _seconds(error.response.headers.get("retry-after")))
    if (status in OF_ALL_CALLS and not (status == 403 and answered)) or status < 400:
        return ConfigError(
            f"{section.url} does not answer for model {section.model!r}: {said}. Check url, model and api_key_env."
        )
    return Refused("refused by the server", said)


def _seconds(header: str | None) -> float:
    """Retry-After, as seconds or a date; 0 where there is none that can be read."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0
