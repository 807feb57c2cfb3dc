"""A local HTTP proxy that damages what an OpenAI-compatible server says, as networks and servers do."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

FAULTS = (
    "hang", "429", "500", "cut", "drip", "not json", "half json", "no choices", "two choices", "empty", "duplicate",
    "html", "refused connection", "huge usage",
)  # fmt: skip
USAGES = {
    "no usage": None, "null usage": {"prompt_tokens": None, "completion_tokens": None}, "empty usage": {},
    "no tokens": {"prompt_tokens": 0, "completion_tokens": 0}, "no answer tokens": {"prompt_tokens": 10},
    "null answer tokens": {"prompt_tokens": 10, "completion_tokens": None}, "usage in words": "much",
    "huge usage": {"prompt_tokens": 10**30, "completion_tokens": 5},
}  # fmt: skip
HEAD = "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{extra}connection: close\r\n\r\n"


class AtOnce(random.Random):
    """No wait between tries."""

    def uniform(self, a: float, b: float) -> float:
        return a


@dataclass
class Seen:
    """One request that reached the proxy.

    Attributes:
        call: its Idempotency-Key; fault: what was done to it; whole: a chat completion was sent to the end.
        sent: the body of an undamaged reply.
        endless: bytes of a body without end that the client took.
    """

    call: str
    body: dict[str, Any]
    fault: str
    began: float
    ended: float = 0.0
    whole: bool = False
    sent: bytes = b""
    endless: int = 0


@dataclass
class FaultProxy:
    """Runs in a thread of its own from `with` to the end of it.

    Attributes:
        upstream: the server behind, up to /v1; None answers by `content` alone.
        fault: the fault for the n-th request, "" for none.
        content: what the assistant says in the place of the server, given the request's body.
        beside: what stands in each reply in the place of what would.
        delay: seconds that each reply takes more; drip: seconds between two bytes of a dripping one.
        full: (n, last): a reply is sent only while n requests are here, until the last-th has come.
    """

    upstream: str | None
    fault: Callable[[int, dict[str, Any]], str] = lambda number, body: ""
    content: Callable[[dict[str, Any]], str] | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.05
    full: tuple[int, int] | None = None
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> FaultProxy:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            self._last = b""
            self._here, self._came = 0, asyncio.Condition()
            async with httpx2.AsyncClient(timeout=120) as self._client:
                server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**26)
                self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
                ready.set()
                await self._stop.wait()
                server.close()
                left = asyncio.all_tasks() - {asyncio.current_task()}
                for task in left:  # a connection that outlives the loop fails when it is collected, wherever that is
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

        self._loop.run_until_complete(main())

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head.split("\r\n")[1:] if line)}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            fault = self.fault(len(self.seen), body)
            seen = Seen(headers.get("idempotency-key", ""), body, fault, time.monotonic())
            self.seen.append(seen)
            await self._reply(seen, writer)
            seen.ended = time.monotonic()
            if fault == "":  # a reply is given twice only after its owner has it whole and hangs up
                await reader.read()
                self._last = seen.sent or self._last
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _reply(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        fault = seen.fault
        if fault == "refused connection":
            writer.transport.abort()
        elif fault == "hang":
            await asyncio.wait_for(self._stop.wait(), 60)
        elif fault == "429":
            await self._send(writer, 429, b'{"error": {"message": "slow down"}}', extra="retry-after: 0.05\r\n")
        elif fault == "400":
            await self._send(writer, 400, b'{"error": {"message": "unknown field"}}')
        elif fault == "403":
            await self._send(writer, 403, b'{"error": {"message": "flagged"}}')
        elif fault == "500":
            await self._send(writer, 500, b'{"error": {"message": "oops"}}')
        elif fault.startswith("endless "):
            await self._endless(seen, writer, int(fault.split()[1]))
        elif fault == "html":
            await self._send(writer, 200, b"<html>sign in</html>", kind="text/html")
        elif fault == "not json":
            await self._send(writer, 200, b'{"choices": [{"message": {"content": "1')
        else:
            status, answer = await self._upstream(seen.body)
            await self._damaged(seen, writer, status, answer)

    async def _upstream(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.full is not None:
            places, last = self.full
            async with self._came:
                self._here += 1
                self._came.notify_all()
                await self._came.wait_for(lambda: self._here >= places or len(self.seen) >= last)
                self._here -= 1
        if self.upstream is not None:
            asked = body if self.content is None else _shortened(body)
            response = await self._client.post(self.upstream + "/chat/completions", json=asked)
            status, answer = response.status_code, response.json()
        else:
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            status, answer = 200, {"id": f"id-{len(self.seen)}-{time.time_ns()}", "choices": [choice], "usage": usage}
        if status == 200 and self.content is not None:
            answer["choices"][0]["message"]["content"] = self.content(body)
            answer["choices"][0]["finish_reason"] = "stop"
        return status, answer | self.beside

    async def _damaged(self, seen: Seen, writer: asyncio.StreamWriter, status: int, answer: dict[str, Any]) -> None:
        fault = seen.fault
        if status == 200 and fault == "empty":
            answer["choices"][0]["message"]["content"] = ""
            answer["choices"][0]["finish_reason"] = "stop"
        elif status == 200 and fault == "all thought":
            answer["choices"][0]["message"]["content"] = ""
            answer["choices"][0]["finish_reason"] = "length"
        elif status == 200 and fault == "half json":
            text = answer["choices"][0]["message"]["content"]
            answer["choices"][0]["message"]["content"] = text[: len(text) // 2]
        elif status == 200 and fault == "no choices":
            answer["choices"] = []
        elif status == 200 and fault.startswith("two choices"):
            answer["choices"] *= 2
        elif status == 200 and fault == "error with a 200":
            answer = {"error": {"code": 502, "message": "no provider now"}}
        if status == 200 and (usage := fault.removeprefix("two choices, ")) in USAGES:
            answer["usage"] = USAGES[usage]
        data = json.dumps(answer).encode()
        if fault == "duplicate" and self._last:
            data = self._last
        seen.sent = data if status == 200 else b""
        if fault == "cut":
            writer.write(HEAD.format(status=200, kind="application/json", length=len(data), extra="").encode())
            writer.write(data[: len(data) // 2])
            await writer.drain()
            writer.transport.abort()
            return
        await self._send(writer, status, data, drip=self.drip if fault == "drip" else 0)
        seen.whole = status == 200 and fault in ("", "empty", "half json", "duplicate", *USAGES)

    async def _endless(self, seen: Seen, writer: asyncio.StreamWriter, status: int) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"oops, " * 10_000
        while seen.endless < 2**28:
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
            seen.endless += len(chunk)

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, data: bytes, kind: str = "application/json", extra: str = "",
        drip: float = 0,
    ) -> None:  # fmt: skip
        writer.write(HEAD.format(status=status, kind=kind, length=len(data), extra=extra).encode())
        for start in range(0, len(data), 1 if drip else len(data) or 1):
            writer.write(data[start : start + (1 if drip else len(data))])
            await writer.drain()
            if drip:
                await asyncio.sleep(drip)


def _shortened(body: dict[str, Any]) -> dict[str, Any]:
    """The request with its images and few words, for a tiny model that reads 160 tokens; its reply is replaced."""
    content = next(message for message in body["messages"] if message["role"] == "user")["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    images = [part for part in parts if part["type"] == "image_url"]
    return {**body, "messages": [{"role": "user", "content": [*images, {"type": "text", "text": "Well?"}]}]}
