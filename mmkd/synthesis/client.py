"""Any OpenAI-compatible endpoint as a back end."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)  # fmt: skip

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError
from mmkd.synthesis.backends import Call, NoReply, Refused
from mmkd.synthesis.messages import to_messages, with_schema
from mmkd.synthesis.paid import Paid
from mmkd.synthesis.requests import Completion, ScoredToken, Usage
from mmkd.synthesis.schemas import strict

try:
    import httpx2  # openai's own HTTP library
    import openai

    from mmkd.synthesis.limits import Budget, Rates, priced
    from mmkd.synthesis.retrying import Clock, Trouble, retried
    from mmkd.synthesis.servers import Server, servers_of
except ImportError as error:
    raise ConfigError(f"asking an endpoint needs {error.name}: pip install 'mmkd[synthesis]'.") from error

MOST_REPLY = 16 * 2**20  # bytes of one reply
MOST_TOKENS = 10**9  # of one prompt or answer; sums of what is more would not fit the store's index
GRAMMAR_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {  # beside OpenAI's own; vLLM's is so since 0.12
    "vllm": lambda text: {"structured_outputs": {"grammar": text}},
    "sglang": lambda text: {"ebnf": text},
    "llama_cpp": lambda text: {"grammar": text},
}


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """A good answer is not bought again for what is wrong beside it."""
    try:
        return read(value)
    except ValidationError:
        return None


class _Part(BaseModel):
    type: str
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """Parts that are no text are a model's thoughts, or its sources."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type == "text")
        return self.content or ""


class _LogProbs(BaseModel):
    content: list[ScoredToken] | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _as_asked(cls, value: Any, info: ValidationInfo) -> Any:
        return value if info.context else None  # whether they were asked for; some servers send some all the same


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0, le=MOST_TOKENS)
    completion_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)


class _Charged(BaseModel):
    """What can be read of a reply that is no chat completion."""

    usage: Annotated[_Usage | None, WrapValidator(_or_none)] = None


class _Reply(_Charged):
    """The part of a chat completion that is read."""

    choices: list[_Choice] = Field(min_length=1, max_length=1)
    id: Annotated[str | None, WrapValidator(_or_none)] = None
    model: Annotated[str | None, WrapValidator(_or_none)] = None


class _TooLong(ValueError):
    pass


class Endpoint:
    """See `Backend`.

    A call goes out within budget and rates; a 429, a 5xx, a cut or slow connection and a reply that is no chat
    completion send it again, with growing, jittered waits, no sooner than the server's Retry-After, until retry_seconds
    have passed or MOST_MISSHAPEN replies were JSON of a wrong shape. Tries whose reply is no chat completion may have
    been charged: they count by the usage that it states, else at the most that the call can use. A 4xx that speaks of
    this call refuses it; one that speaks of every call (key, model, path) stops the run. Of several servers, each try
    goes to the one with the fewest calls on their way, and one that failed is left alone for a while. A 403 speaks of
    every call until one was answered; then of this one, whose words a router's moderation did not like.

    Args:
        paid: what this model was paid before, for the budget; others may share it.
        answered: whether an earlier run got answers from it.

    Raises: ConfigError where the key's environment variable is not set.
    """

    def __init__(self, section: EndpointSection, paid: Paid | None = None, answered: bool = False):
        self.section, self.model, self.license = section, section.model, section.license
        self.extra_body = section.beside
        self.concurrency = section.concurrency * (1 + len(section.replicas))
        self._answered = answered
        self.sent = 0  # HTTP requests, retries included
        self._budget, self._rates = Budget(section.budget, paid or Paid()), Rates(section)
        self._server_forms = section.structured != "validate"
        self._random = random.Random()
        self._servers = servers_of(section, _key(section.api_key_env))

    async def complete(self, call: Call) -> Completion:
        most, lost = most_of(self.section, call), list[Usage]()
        await self._budget.reserve(most)
        used = Usage()
        try:
            completion = await self._retrying(call, most, lost)
            used = completion.usage
            return replace(completion, lost=sum(lost, Usage()))
        except (NoReply, Refused) as error:
            error.lost = sum(lost, Usage())
            raise
        finally:
            self._budget.settle(most, used)

    async def close(self) -> None:
        for server in self._servers:
            await server.client.close()

    async def _retrying(self, call: Call, most: Usage, lost: list[Usage]) -> Completion:
        messages = await asyncio.to_thread(to_messages, call.turns, call.images)  # decoding and base64 take their time
        clock = Clock()
        tries = retried(self.section.retry_seconds, self._random, clock)
        try:
            async for attempt in tries:
                with attempt:
                    server = min(self._servers, key=Server.burden)
                    with server.called():
                        await server.pause.over()
                        with clock.stopped():
                            await self._rates.wait(most)
                        return await self._once(server, call, messages, most, lost)
        except Trouble as trouble:
            how = f"tries: {tries.statistics['attempt_number']}; retry_seconds: {self.section.retry_seconds:g}"
            raise NoReply(trouble.kind, f"{trouble} ({how})") from trouble
        raise AssertionError("tenacity ends with a return or an exception")

    async def _once(
        self, server: Server, call: Call, messages: list[dict[str, Any]], most: Usage, lost: list[Usage]
    ) -> Completion:
        self.sent += 1
        forms, body = self._server_forms, b""
        try:
            async with asyncio.timeout(self.section.timeout):
                # With the schema in its prompt it is another call: a server may answer one of a known name as before.
                stated = call.schema is not None and not forms and self.section.structured == "auto"
                name = f"{call.id}-stated" if stated else call.id
                body = await self._body(server, name, self._arguments(call, messages, forms))
            reply = _Reply.model_validate_json(body, context=call.sampling.log_probs)
            self._answered = True
            return self._completion(reply, most)
        except openai.APIStatusError as error:
            if call.schema and forms and self.section.structured == "auto" and _no_forms(error):
                self._server_forms = False  # the schema is stated in the prompt from now on
                return await self._once(server, call, messages, most, lost)
            raise server.told(error, self._answered) from error
        except (ValidationError, _TooLong, httpx2.DecodingError) as error:
            lost.append(self._of_broken(body, most))
            trouble = server.told(error)
            if not self._budget.lose(lost[-1]):
                raise NoReply("broken reply", f"{trouble}; the budget does not cover another try") from error
            raise trouble from error
        except (openai.OpenAIError, httpx2.HTTPError, TimeoutError, ValueError) as error:  # pydantic's is a ValueError
            raise server.told(error) from error

    async def _body(self, server: Server, name: str, arguments: dict[str, Any]) -> bytes:
        """The reply's bytes; read here, because the client would take in a reply of any length."""
        create, body = server.client.chat.completions.with_streaming_response.create, bytearray()
        # A server that knows the header charges a call that is sent again only once.
        async with create(**arguments, extra_headers={"Idempotency-Key": name}) as response:
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MOST_REPLY:
                    raise _TooLong(f"a reply of more than {MOST_REPLY:,} bytes")
        return bytes(body)

    def _arguments(self, call: Call, messages: list[dict[str, Any]], forms: bool) -> dict[str, Any]:
        sampling, extra = call.sampling, dict(self.section.extra_body)
        arguments: dict[str, Any] = {
            "model": self.section.model,
            "messages": messages if forms or call.schema is None else with_schema(messages, call.schema),
            "temperature": sampling.temperature,
            self.section.token_field: sampling.max_tokens,
            "seed": sampling.seed,
        }
        for name in self.section.omit:
            arguments.pop(name, None)
        if sampling.log_probs:
            arguments |= {"logprobs": True, "top_logprobs": sampling.log_probs}
        if sampling.top_p != 1:
            arguments["top_p"] = sampling.top_p
        if sampling.grammar:
            if self.section.grammar is None:
                raise ConfigError(
                    f"{self.section.model} is asked for answers that follow a grammar, and nothing says how this "
                    f"server takes one. Set endpoint.grammar to one of {', '.join(GRAMMAR_FIELDS)}."
                )
            extra |= GRAMMAR_FIELDS[self.section.grammar](sampling.grammar)
        if call.schema is not None and forms:
            form = {"name": call.schema.__name__, "schema": strict(call.schema.model_json_schema()), "strict": True}
            arguments["response_format"] = {"type": "json_schema", "json_schema": form}
        if extra:
            arguments["extra_body"] = extra
        return arguments

    def _completion(self, reply: _Reply, most: Usage) -> Completion:
        choice, usage = reply.choices[0], self._used(reply.usage, most)
        if choice.message.refusal and not choice.message.text:
            return Completion(choice.message.refusal, usage, "refusal", self._id(reply), reply.model)
        scored = choice.logprobs.content if choice.logprobs else None
        return Completion(
            choice.message.text,
            usage,
            choice.finish_reason or "stop",
            self._id(reply),
            reply.model,
            tuple(scored) if scored is not None else None,
        )

    def _used(self, told: _Usage | None, most: Usage) -> Usage:
        """What a reply was charged at, by its own word; what it does not tell, at the most that it can be. No prompt
        has 0 tokens: some servers say so of a count that they do not keep."""
        if told is None or not told.prompt_tokens:
            return replace(most, estimated=True)
        if told.completion_tokens is None:
            return priced(self.section.price, told.prompt_tokens, most.answer_tokens, estimated=True)
        return priced(self.section.price, told.prompt_tokens, told.completion_tokens)

    def _of_broken(self, body: bytes, most: Usage) -> Usage:
        """What a reply that is no chat completion was charged at."""
        try:
            return self._used(_Charged.model_validate_json(body).usage, most)
        except ValidationError:
            return self._used(None, most)

    def _id(self, reply: _Reply) -> str | None:
        return (reply.id or None) if self.section.unique_ids else None


def most_of(section: EndpointSection, call: Call) -> Usage:
    """The most that a call can use: no tokenizer makes more tokens than bytes, and chat templates add a few."""
    prompt = sum(len(turn.text.encode()) + 16 for turn in call.turns) + section.image_tokens * len(call.images)
    if call.schema is not None:
        prompt += 2 * len(str(call.schema.model_json_schema()))
    return priced(section.price, prompt, call.sampling.max_tokens)


def _no_forms(error: openai.APIStatusError) -> bool:
    """Whether the server says that it does not offer response_format."""
    return error.status_code in (400, 422) and any(word in str(error) for word in ("response_format", "json_schema"))


def _key(name: str | None) -> str:
    if name is None:
        return "none"
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"api_key_env names {name}, which is not set; export {name}=... before you run.")
    return key
