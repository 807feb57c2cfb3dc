"""An OpenAI-compatible server of one model, on the code of `transformers serve`.

transformers gives generation, streaming and answers; what is here decides what a request may make the server do: three
routes, one model, images read once and from allowed places only. Its own routes that load models, open paths or fetch
URLs are not among them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkd.data.byte_spans import byte_table
from mmkd.errors import ConfigError, DataError
from mmkd.inference.reader import Reader
from mmkd.inference.request import ChatRequest
from mmkd.inference.request_images import ImageSources, RequestError

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from openai.types import CompletionUsage
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.utils import GenerateManager, GenerationState
except ImportError as error:
    raise ConfigError(f"mmkd serve needs {error.name}: pip install 'mmkd[serve]'.") from error

MOST_BODY = 64 * 2**20  # bytes of one request
MOST_REQUESTS = 64  # at once; further ones get a 503
LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]
COLDEST = 1e-6  # a temperature below it is greedy: logits divided by it overflow


class ChatServer(ChatCompletionHandler):
    """Answers chat completions with one model, whose images a Reader compresses and remembers.

    Args:
        name: what requests call the model.
        answer_tokens: most tokens of an answer, also where a request asks for more.
    """

    def __init__(self, name: str, reader: Reader, sources: ImageSources, answer_tokens: int = 512):
        # No model manager: it would load whatever a request names.
        super().__init__(model_manager=None, generation_state=GenerationState())
        self.name, self.reader, self.sources, self.answer_tokens = name, reader, sources, answer_tokens

    async def answer(self, body: bytes) -> JSONResponse | StreamingResponse:
        """Raises RequestError or DataError for what cannot be answered."""
        request = ChatRequest.parse(body)
        steering = _steering(request)
        if request.model != self.name:
            raise RequestError(f"model {request.model!r} is not served here; this server has {self.name!r}.", 404)
        # Fetching may wait for other machines: not on the thread that answers, nor on the one that listens.
        images = await asyncio.to_thread(lambda: [self.sources.read(url) for url in request.image_urls()])
        model, manager = self.reader.loaded.model, self.generation_state.get_manager(self.name)
        # The reader and the model belong to transformers' inference thread, which takes one job after another.
        inputs = await manager.async_submit(self.reader.inputs, request.to_messages(), images)
        seed = steering.pop("seed", None)  # transformers would set it here, long before the answer's turn comes
        config = self._build_generation_config(steering, model.generation_config)
        config.max_new_tokens = min(config.max_new_tokens, self.reader.room(inputs))
        if seed is not None:
            manager = _Seeded(manager, seed)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if request.logprobs:
            return await self._scored(name, inputs, config, manager, request.top_logprobs or 0)
        respond = self._streaming if request.stream else self._non_streaming
        tokenizer = self.reader.loaded.processor.tokenizer  # stop strings need it, not the processor
        response = respond(name, model, tokenizer, self.name, inputs, config, manager)
        return response if isinstance(response, StreamingResponse) else await response

    async def _scored(self, name: str, inputs: dict, config: Any, manager: Any, most: int) -> JSONResponse:
        """A whole answer with the log-probabilities of its tokens, as the model has them before temperature and top_p,
        and of the `most` likeliest at each place. Nothing is told of special tokens, such as the one that ends it."""
        loaded, length = self.reader.loaded, inputs["input_ids"].shape[1]
        tokenizer = loaded.processor.tokenizer
        options = {"generation_config": config, "tokenizer": tokenizer, "return_dict_in_generate": True}
        made = await manager.async_submit(loaded.model.generate, **inputs, **options, output_logits=True)
        ids = made.sequences[0, length:].tolist()
        content = []
        for i, logits in zip(ids, made.logits, strict=True):
            log_probs = logits[0].float().log_softmax(-1)
            if self._bytes(i):
                likeliest = [self._token(j, log_probs) for j in log_probs.topk(most).indices.tolist()]
                content.append(self._token(i, log_probs) | {"top_logprobs": likeliest})
        usage = CompletionUsage(prompt_tokens=length, completion_tokens=len(ids), total_tokens=length + len(ids))
        finish = "length" if len(ids) >= config.max_new_tokens else "stop"
        body = self._build_completion(name, tokenizer.decode(ids, skip_special_tokens=True), self.name, finish, usage)
        body["choices"][0]["logprobs"] = {"content": content}
        return JSONResponse(body)

    def _token(self, i: int, log_probs: Tensor) -> dict[str, Any]:
        data = self._bytes(i)
        text = data.decode(errors="replace") if data else self.reader.loaded.processor.tokenizer.decode([i])
        return {"token": text, "bytes": list(data) if data else None, "logprob": float(log_probs[i])}

    def _bytes(self, i: int) -> bytes:
        """Of a token; none of a special one, nor of the padding of a wide head."""
        return self._table[i] if i < len(self._table) else b""

    @cached_property
    def _table(self) -> list[bytes]:
        try:
            return byte_table(self.reader.loaded.processor.tokenizer)
        except ConfigError as error:
            raise RequestError(f"logprobs: {error}") from error

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        config = super()._build_generation_config(body, model_generation_config, use_cb)
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or self.answer_tokens
        config.max_new_tokens = min(asked, self.answer_tokens)
        # A decoder's own settings often sample or punish repetition; here only a request does.
        config.do_sample = ("temperature" in body or "top_p" in body) and body.get("temperature") != 0
        config.num_beams, config.no_repeat_ngram_size = 1, 0
        if "frequency_penalty" not in body:
            config.repetition_penalty = 1.0
        ends = self.reader.loaded.generation
        config.eos_token_id, config.pad_token_id = ends["eos_token_id"], ends["pad_token_id"]
        return config


class _Seeded(GenerateManager):
    """A manager whose jobs start from a seed: in its thread, where no other job can draw in between."""

    def __init__(self, manager: GenerateManager, seed: int):  # no super(): it starts a thread of its own
        self.manager, self.seed = manager, seed

    def submit(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        return self.manager.submit(self._run, fn, *args, **kwargs)

    def async_submit(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        return self.manager.async_submit(self._run, fn, *args, **kwargs)

    def _run(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(self.seed)
        return fn(*args, **kwargs)


def _steering(request: ChatRequest) -> dict[str, Any]:
    """The fields that steer generation, cleaned. Raises RequestError for an empty stop string."""
    fields = request.generation()
    stop = fields.pop("stop", [])
    if "" in ([stop] if isinstance(stop, str) else stop):
        raise RequestError("stop: an empty string would end every answer at once; leave it out.")
    if stop:
        fields["stop"] = stop
    if fields.get("temperature", 1) < COLDEST:
        fields["temperature"] = 0
    return fields


def build_app(server: ChatServer, host: str = "127.0.0.1") -> FastAPI:
    """The three routes.

    Args:
        host: what the server listens on. Where that is this machine alone, only requests that call it so, or localhost,
            are answered: no web page reaches the server through a name of its own that it points here.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, _in_url(host)])

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return _error(str(error), error.status)

    @app.exception_handler(DataError)
    async def unusable(_: Request, error: DataError) -> JSONResponse:
        return _error(str(error), 400)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> JSONResponse | StreamingResponse:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # A browser sends anything else across sites without asking the server first.
            raise RequestError("the content-type must be application/json.", 415)
        return await server.answer(await _body(request))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": server.name, "object": "model", "created": 0, "owned_by": "mmkd"}]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        counts = server.reader.counts
        return {"status": "ok", "images": {"compressed": counts.compressed, "reused": counts.reused}}

    return app


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Any = None,
    remember: int = 32,
    answer_tokens: int = 512,
    hosts: list[str] | None = None,
    folders: list[Path] | None = None,
    say: Any = print,
) -> None:
    """Serve until stopped. Raises ConfigError for a model that cannot be loaded or a port that is taken."""
    if missing := [str(folder) for folder in folders or [] if not folder.is_dir()]:
        raise ConfigError(f"--allow-folder {missing[0]}: no such folder.")
    listener = _listen(host, port)  # before the model is loaded: a port that is taken is known at once
    with listener:
        reader = Reader.open(model, tokens, remember)
        sources = ImageSources(frozenset(name.lower() for name in hosts or []), tuple(folders or []))
        name = served_name(model)
        app = build_app(ChatServer(name, reader, sources, answer_tokens), host)
        reading = "all vision tokens" if reader.tokens is None else f"{reader.tokens} tokens"
        say(f"{name} at http://{_in_url(host)}:{listener.getsockname()[1]}/v1 · an image is read as {reading}")
        if not is_loopback(host):
            say(f"{host} is not this machine alone: whoever reaches it can ask, there is no password.")
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=MOST_REQUESTS,
            server_header=False,
            timeout_graceful_shutdown=5,  # Ctrl-C stops it, whoever is still connected
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def served_name(model: str) -> str:
    """A model's name in requests: that of its folder, or of the run whose model/ it is, or its hub id."""
    path = Path(model)
    if not path.exists():
        return model
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --port or --host.") from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise RequestError(f"the request is larger than {MOST_BODY:,} bytes; send smaller or fewer images.", 413)
    return bytes(body)


def _error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)
