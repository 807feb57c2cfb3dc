"""`transformers serve` as a process, on a folder in Hugging Face format."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def serving(model: Path, log: Path, ours: bool = False) -> Iterator[str]:
    """Its address, up to /v1, once it answers; the model is then called by its folder. `ours`: a release of mmkd."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stock = [str(Path(sys.executable).with_name("transformers"))]
    program = [sys.executable, str(Path(__file__).with_name("serve_releases.py"))] if ours else stock
    command = [*program, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _wait(server: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError(f"no answer from {url}: {log.read_text()}")
