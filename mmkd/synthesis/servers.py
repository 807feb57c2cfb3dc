"""The servers behind an endpoint: which one a call goes to, and which are left alone for a while."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx2
import openai

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError
from mmkd.synthesis.limits import Pause
from mmkd.synthesis.retrying import Trouble, trouble_of
from mmkd.synthesis.visible import visible

MOST_ERROR = 64 * 2**10  # bytes of a reply that is an error; the client would take in any number
LONGEST_AVOIDED = 60.0  # seconds that a server which keeps failing gets no call, where there is another


class Server:
    """One address, its connections, and what is known of it.

    Attributes:
        section: the endpoint's, with this address.
        calls: on their way.

    Raises: ConfigError for what is no address.
    """

    def __init__(self, section: EndpointSection, key: str):
        self.section, self.pause, self.calls = section, Pause(), 0
        self._failures, self._avoided_until = 0, 0.0
        try:
            self.client = openai.AsyncOpenAI(
                base_url=section.url,
                api_key=key,
                max_retries=0,
                timeout=section.timeout,
                # A redirect would carry the key and the images to another host.
                http_client=openai.DefaultAsyncHttpxClient(
                    follow_redirects=False, timeout=section.timeout, event_hooks={"response": [_cut]}
                ),
            )
        except httpx2.InvalidURL as error:  # what the config's own look at an address let pass
            raise ConfigError(f"endpoint: {visible(section.url[:300])} is no address: {error}") from error

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

    def told(self, error: Exception, answered: bool = False) -> Exception:
        """See `trouble_of`; where this server said when to come back, it is left alone until then."""
        told = trouble_of(error, self.section, answered)
        if isinstance(told, Trouble) and told.retry_after:
            self.pause.extend(told.retry_after)
        return told


class _Beginning(httpx2.AsyncByteStream):
    """The first MOST_ERROR bytes of a stream."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MOST_ERROR
        async for chunk in self._stream:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _cut(response: httpx2.Response) -> None:
    if not response.is_success and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Beginning(response.stream)


def servers_of(section: EndpointSection, key: str) -> list[Server]:
    return [Server(section.model_copy(update={"url": url}), key) for url in (section.url, *section.replicas)]
