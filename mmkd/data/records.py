"""The record: one chat sample, the only thing that data sources yield and engines write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass
class Turn:
    """One message. Images are not placed inside turns: all images of a record stand before its first turn.

    Attributes:
        rationale: why the answer of an assistant turn is so; None where nobody showed it.
        rejected: a worse answer than that of the last turn, which makes the record a preference pair.
        answers: of an assistant turn: what several people answered, as VQA has it; nothing is trained on them.
        choices: of a user turn: the answers on offer, A, B, .. in this order; the model reads `text` alone.
    """

    role: Role
    text: str
    rationale: str | None = None
    rejected: str | None = None
    answers: list[str] | None = None
    choices: list[str] | None = None


@dataclass
class Provenance:
    """Where a record came from; written by every engine, kept through mixing and release.

    Attributes:
        program: the source of the visual program that gave the rationale; verdict: the verifier's, with its reason.
        trace: what the program's tools were asked and answered, one object a call.
        template: the question in a template's words, where a model was asked for others; said: the model's words, taken
            for the question or not.
    """

    parent: str | None = None
    engine: str | None = None
    round: int | None = None
    model: str | None = None
    prompt_hash: str | None = None
    seed: int | None = None
    license: str | None = None
    program: str | None = None
    verdict: str | None = None
    trace: list[dict[str, Any]] | None = None
    template: str | None = None
    said: str | None = None


@dataclass
class Record:
    """One chat sample.

    Attributes:
        id: unique inside its source.
        turns: alternating user and assistant turns, optionally after one system turn; only assistant text is trained.
        images: paths of image files (str), or encoded bytes; decoded in the data workers, never kept decoded.
        task: a short label used for balance and for reports, e.g. "color", "count", "yes/no".
        source: the name of the data source.
    """

    id: str
    turns: list[Turn]
    images: list[str | bytes] = field(default_factory=list)
    task: str = ""
    source: str = ""
    provenance: Provenance = field(default_factory=Provenance)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
