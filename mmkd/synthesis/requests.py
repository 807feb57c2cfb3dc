"""What is asked of a model, and what came of it: the types that every engine and every back end share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from mmkd.data.images import read_image
from mmkd.data.records import Turn


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Another seed is another sample of the same question.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        max_tokens: of an answer; one that is cut off there is no answer, unless the request may be cut.
        log_probs: how many of the likeliest tokens are wanted with each token of the answer; 0 for none.
        grammar: GBNF of which the answer has to be a text; only tokens that lead to one can be drawn. Empty for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    log_probs: int = 0
    grammar: str = ""

    def content(self) -> dict[str, Any]:
        """As JSON; what is not asked for is left out, so that answers from before it could be are still found."""
        asked = {name: value for name, value in asdict(self).items() if name not in ("log_probs", "grammar") or value}
        return asked | ({"grammar": digest(self.grammar)} if self.grammar else {})


class TokenScore(BaseModel):
    """A token in an endpoint's words, the bytes it stands for where they are told, and its natural log-probability."""

    token: str
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None = None
    logprob: float = Field(le=1e-3, allow_inf_nan=False)


class ScoredToken(TokenScore):
    """A token of an answer, and the likeliest at its place."""

    top_logprobs: Annotated[list[TokenScore], BeforeValidator(lambda told: told or [])] = Field(  # null for none
        default_factory=list, max_length=1000
    )


@dataclass(frozen=True)
class Request:
    """One chat that a model should go on with.

    Attributes:
        id: the engine's own name for it, e.g. the record's id; not part of the key.
        turns: system, user and assistant turns, the last one a user's.
        images: paths or encoded bytes; all of them stand before the first user turn's text.
        schema: what the answer must be as JSON; None for free text.
        may_be_cut: whether an answer that ran into max_tokens is still an answer.
        prompt: the template it was rendered from, e.g. "judge_pair v1 3f1c20aa"; empty for the record's own words.
        license: of what it was made from.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str | bytes, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    schema: type[BaseModel] | None = None
    may_be_cut: bool = False
    prompt: str = ""
    license: str | None = None

    def content(self) -> dict[str, Any]:
        """All that an answer depends on beside the model, as JSON; images by the SHA-256 of their bytes.

        Raises: DataError where an image cannot be read.
        """
        return {
            "turns": [{"role": turn.role, "text": turn.text} for turn in self.turns],
            "images": [hashlib.sha256(read_image(image)).hexdigest() for image in self.images],
            "sampling": self.sampling.content(),
            "schema": self.schema.model_json_schema() if self.schema else None,
            "may_be_cut": self.may_be_cut,
        }


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def request_key(model: str, content: dict[str, Any]) -> str:
    """The name under which an answer is stored: of the model's identity and the request's content."""
    return digest({"model": model, **content})


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one call.

    Attributes:
        cost: in the currency of the configured prices.
        estimated: the endpoint did not say, so the most that it can have been is counted.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.cost + other.cost,
            self.estimated or other.estimated,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Completion:
    """One reply of a back end, as it came.

    Attributes:
        finish: stop, length, or the back end's own word.
        response_id: the endpoint's name for it; two requests never share one.
        served_by: the model that the endpoint says it used.
        tokens: of the text with their log-probabilities, where the endpoint gives them.
        lost: what replies to the same call may have cost that came before and were no chat completions.
    """

    text: str
    usage: Usage
    finish: str = "stop"
    response_id: str | None = None
    served_by: str | None = None
    tokens: tuple[ScoredToken, ...] | None = None
    lost: Usage = field(default_factory=Usage)


class Status(StrEnum):
    """What became of a call. The first two are final; a key has at most one final entry."""

    DONE = "done"
    REJECTED = "rejected"  # paid for as often as allowed, and no answer; never asked again
    UNUSABLE = "unusable"  # what was paid for and is no answer; the key is asked again
    REFUSED = "refused"  # the back end did not take it, nothing was paid; the next run tries again
    UNANSWERED = "unanswered"  # nothing came back, nothing was paid; the next run asks again

    @property
    def final(self) -> bool:
        return self in (Status.DONE, Status.REJECTED)


@dataclass(frozen=True)
class Answer:
    """What a request ended as.

    Attributes:
        text: of the reply; empty unless done.
        value: the reply as the request's schema; None for free text, and unless done.
        kind: a few words by which reports count what was not done, e.g. "not the form asked for".
        reason: why, in full.
        usage: of all calls that were paid for it.
        tokens: as of its `Completion`.
    """

    request: Request
    key: str
    status: Status
    model: str
    text: str = ""
    value: BaseModel | None = None
    kind: str = ""
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    tokens: tuple[ScoredToken, ...] | None = None

    @property
    def done(self) -> bool:
        return self.status is Status.DONE
