"""The servers behind an endpoint: which one a call goes to, and which are left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.synthesis.limits import Pause
from mmkd.synthesis.retrying import Trouble, trouble_of

LONGEST_AVOIDED = 60.0  # seconds that a server which keeps failing gets no call, where there is another


class Server:
    """One address, its connections, and what is known of it.

    Attributes:
        section: the endpoint's, with this address.
        calls: on their way.
    """

    def __init__(self, section: EndpointSection, key: str):
        self.section, self.pause, self.calls = section, Pause(), 0
        self._failures, self._avoided_until = 0, 0.0
        self.client = openai.AsyncOpenAI(
            base_url=section.url,
            api_key=key,
            max_retries=0,
            timeout=section.timeout,
            # A redirect would carry the key and the images to another host.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=section.timeout),
        )

    def burden(self) -> tuple[bool, int]:
        """The server with the least gets the next call. One that refuses connections has always few calls on their
        way, so one that has just failed comes after all others."""
        return time.monotonic() < self._avoided_until, self.calls

    @contextmanager
    def called(self) -> Iterator[None]:
        """Around each call."""
        self.calls += 1
        try:
            yield
            self._failures = 0
        except Trouble as trouble:
            self._failures += 1
            seconds = min(LONGEST_AVOIDED, 2.0 ** min(self._failures, 10))
            self._avoided_until = time.monotonic() + max(seconds, trouble.retry_after)
            raise
        finally:
            self.calls -= 1

    def told(self, error: Exception) -> Exception:
        """Trouble, Refused or ConfigError, with what this server said; where it said when to come back, it is left
        alone until then."""
        told = trouble_of(error, self.section)
        if isinstance(told, Trouble) and told.retry_after:
            self.pause.extend(told.retry_after)
        return told


def servers_of(section: EndpointSection, key: str) -> list[Server]:
    return [Server(section.model_copy(update={"url": url}), key) for url in (section.url, *section.replicas)]
