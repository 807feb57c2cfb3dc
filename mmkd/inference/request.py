"""The body of a chat completion: what of OpenAI's schema is understood, what is ignored, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmkd.inference.request_images import RequestError

MOST_IMAGES = 16
Text = Annotated[str, Field(max_length=1_000_000)]


class ImageUrl(BaseModel):
    url: str
    detail: str | None = None  # every image is read alike


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(content: Any) -> Any:
    """Text alone as a list of one part; OpenAI's clients send null where there is none."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts)] = []
    name: str | None = None


class ChatRequest(BaseModel):
    """A field that would change the answer and is not here is an error: a client must not believe that it worked."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = False
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None

    # Understood by OpenAI's servers, without meaning here.
    stream_options: dict[str, Any] | None = None  # the last chunk always holds the usage
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _whole_log_probs(self) -> ChatRequest:
        if self.logprobs and self.stream:
            raise ValueError("logprobs come with a whole answer only; leave stream out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @classmethod
    def parse(cls, body: bytes) -> ChatRequest:
        """Raises RequestError naming the first field that is wrong."""
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the request"
            raise RequestError(f"{place}: {first['msg']}.") from None
        if len(request.image_urls()) > MOST_IMAGES:
            raise RequestError(f"{len(request.image_urls())} images in one request; at most {MOST_IMAGES} are read.")
        return request

    def image_urls(self) -> list[str]:
        """In the order of the messages."""
        parts = [part for message in self.messages for part in message.content]
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def to_messages(self) -> list[dict[str, Any]]:
        """As chat templates take them, images as {"type": "image"}."""
        return [
            {"role": "system" if message.role == "developer" else message.role, "content": _content(message)}
            for message in self.messages
        ]

    def generation(self) -> dict[str, Any]:
        """The fields that steer generation, those that were given."""
        names = {
            "max_tokens", "max_completion_tokens", "temperature", "top_p", "frequency_penalty", "seed", "stop",
        }  # fmt: skip
        return self.model_dump(include=names, exclude_none=True)


def _content(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
