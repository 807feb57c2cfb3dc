"""The shape of a section that names a server of a model."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mmkd.config.sections import Section

# Fields of a request that say what was asked; the store knows them from elsewhere.
OWN_FIELDS = frozenset(
    ("model", "messages", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "logprobs",
     "top_logprobs", "response_format", "n", "stream")
)  # fmt: skip


class PriceSection(Section):
    """Money for a million tokens; any currency, the same for both and for the budget."""

    prompt: float = Field(0.0, ge=0)
    answer: float = Field(0.0, ge=0)


class BudgetSection(Section):
    """Limits over all that a job ever paid this model, in compete and programs by all roles; no call is sent that could
    go over one."""

    tokens: int | None = Field(None, ge=1, description="Prompt and answer tokens together.")
    cost: float | None = Field(None, gt=0, description="Money, by `price`.")


class EndpointSection(Section):
    """An OpenAI-compatible server: vLLM, SGLang, llama.cpp, mmkd serve, a vendor."""

    url: str = Field(description="Up to and with /v1, e.g. http://127.0.0.1:8000/v1.")
    replicas: list[str] = Field(
        default_factory=list,
        description="Further servers of the same model; each call goes to the one with the fewest on their way.",
    )
    model: str = Field(description="As the server calls it. Answers are kept under this name.")
    license: str | None = Field(None, description="Of what the model writes, as SPDX id; kept with every answer.")
    api_key_env: str | None = Field(
        None, description="Name of the environment variable that holds the key; the key itself stands in no file."
    )
    price: PriceSection = Field(default_factory=lambda: PriceSection())
    budget: BudgetSection = Field(default_factory=lambda: BudgetSection())
    concurrency: int = Field(16, ge=1, description="Calls at once to each server.")
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="Counted as the most that a call can use.")
    timeout: float = Field(120.0, gt=0, description="Seconds for one whole reply, however slowly it drips.")
    retry_seconds: float = Field(
        300.0,
        ge=0,
        description="How long a call is sent again before it is given up; not counting waits for its turn by a rate.",
    )
    token_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="What the server calls the most tokens of an answer; OpenAI's reasoning models take the latter.",
    )
    omit: list[Literal["seed", "temperature"]] = Field(
        default_factory=list,
        description="Fields of a request that this server refuses: they are not sent; such answers are others.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of each request, as they are, e.g. {reasoning_effort: low}; answers asked for with "
        "others are others.",
    )
    structured: Literal["auto", "server", "validate"] = Field(
        "auto",
        description="Who sees to the form of JSON answers: the server, by response_format; or validate alone, which "
        "states the schema in the prompt; auto tries the server first. Answers are validated in all cases.",
    )
    grammar: Literal["vllm", "sglang", "llama_cpp"] | None = Field(
        None, description="Which server's field a grammar goes into, where answers are asked for that follow one."
    )
    image_tokens: int = Field(4096, ge=1, description="Most tokens of one image, for budget and rate.")
    check_images: bool = Field(True, description="Stop where the prompt tokens show that an image was not read.")
    unique_ids: bool = Field(True, description="False for servers that give every reply the same id.")

    @property
    def beside(self) -> dict[str, Any]:
        """What the server is told with each call beside the call itself, and what of the call it is not told: part of
        what an answer is known by."""
        return self.extra_body | ({"omit": sorted(set(self.omit))} if self.omit else {})

    @field_validator("url", "replicas")
    @classmethod
    def address(cls, value: str | list[str]) -> str | list[str]:
        for url in [value] if isinstance(value, str) else value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} does not begin with http:// or https://; e.g. http://127.0.0.1:8000/v1")
            try:
                parts = urlsplit(url)
                named = bool(parts.hostname) and parts.port != 0  # a port that is none is found when it is read
            except ValueError as error:
                raise ValueError(f"{url!r} is no address: {error}; e.g. http://127.0.0.1:8000/v1") from error
            if not named:
                raise ValueError(f"{url!r} names no host, or port 0; e.g. http://127.0.0.1:8000/v1")
        return value

    @field_validator("extra_body")
    @classmethod
    def further(cls, fields: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(OWN_FIELDS & fields.keys()):
            raise ValueError(f"{', '.join(own)}: mmkd sets this itself, from model, sampling and token_field")
        return fields
