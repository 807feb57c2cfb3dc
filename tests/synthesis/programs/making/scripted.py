"""A server of chat completions over a real socket that writes programs by rule, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (question, seed) -> reply
Rule = Callable[[str, int], str]


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # at the default of 5, Linux resets some of 48 connections that come at once


class ScriptedWriter:
    """`with ScriptedWriter(rule) as server: server.url, server.asked`."""

    def __init__(self, rule: Rule, delay: float = 0.0):
        self.asked: list[tuple[str, int, str]] = []  # question, seed, Idempotency-Key
        self.last: dict[str, Any] = {}  # body of the last request
        self.delay = delay
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][-1]["content"].removeprefix("Question: ")
                seed, outer.last = body.get("seed", 0), body
                outer.asked.append((question, seed, self.headers["Idempotency-Key"]))
                time.sleep(outer.delay)
                message = {"role": "assistant", "content": rule(question, seed)}
                reply = {
                    "id": f"r{len(outer.asked)}-{time.monotonic_ns()}",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "scripted",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }
                data = json.dumps(reply).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # whoever asked was killed

            def log_message(self, *_: object) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> ScriptedWriter:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
