"""`mmkd serve` on a tiny random release, asked over a real socket; stores and requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import uvicorn

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.inference.reader import Reader
from mmkd.inference.request_images import ImageSources
from mmkd.inference.server import ChatServer, build_app
from mmkd.synthesis.requests import Request, Sampling
from tests.inference.conftest import full_path, language, loaded, make_model, model_path, picture  # noqa: F401

NAME = "tiny"


@pytest.fixture(scope="session")
def served(loaded) -> Iterator[str]:  # noqa: F811
    """The address of the real server, up to /v1, and nothing of it replaced."""
    app = build_app(ChatServer(NAME, Reader(loaded, tokens=4), ImageSources(), answer_tokens=8))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    body = {"model": NAME, "messages": [{"role": "user", "content": "Warm up"}], "max_tokens": 2}
    assert httpx2.post(f"{url}/chat/completions", json=body, timeout=120).status_code == 200  # the first takes long
    yield url
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def endpoint() -> Callable[..., EndpointSection]:
    """`endpoint(url, ..)`: quick to give up, for tests."""

    def section(url: str, **fields: Any) -> EndpointSection:
        settings = {"url": url, "model": NAME, "concurrency": 8, "timeout": 60.0, "retry_seconds": 120.0}
        return EndpointSection.model_validate(settings | {"license": "MIT"} | fields)

    return section


@pytest.fixture(scope="session")
def request_of(picture) -> Callable[..., Request]:  # noqa: F811
    """`request_of(n)`: the n-th of different questions, about one of five pictures."""

    def build(number: int, **fields: Any) -> Request:
        turns = (Turn("user", f"What {number}?"),)
        settings = {"sampling": Sampling(max_tokens=6), "may_be_cut": True, "images": (picture(number % 5),)}
        return Request(f"q{number}", turns, **(settings | fields))

    return build
