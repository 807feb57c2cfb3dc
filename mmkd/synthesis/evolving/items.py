"""What evolves: a question about one image, with its skills and the steps of its visual chain as fields."""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

Direction = Literal["perceptual", "cognitive", "interaction"]
Skill = Literal[
    "grounding", "referring", "calculating", "ocr", "existence",
    "relation description", "context understanding", "behaviour prediction", "knowledge integration",
]  # fmt: skip
Function = Literal["grounding", "referring", "calculate", "ocr", "none"]
# The 17 forms of interaction evolution, and that of an ordinary question.
OPEN = "open question"
Form = Literal[
    "open question", "region selection", "missing object", "text-image match", "object-region match",
    "completeness check", "fill-in", "image style", "art type", "rationale", "text detection", "translation",
    "coreference", "instruction following", "depth order", "relative distance", "creative", "multiple choice",
]  # fmt: skip
FORMS: tuple[str, ...] = tuple(form for form in get_args(Form) if form != OPEN)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

MOST_BOXES = 50  # of one step
CUE = "reason step by step, then say the answer."
Unit = Annotated[float, Field(ge=0, le=1)]
# Left, top, right, bottom as shares of the image's width and height. Servers know arrays of a length, few know tuples.
_FOUR = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
Box = Annotated[tuple[Unit, Unit, Unit, Unit], WithJsonSchema(_FOUR)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=80)]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(Closed):
    """One step of the visual chain.

    Attributes:
        function: one of the four functions, or none for a step in words.
        argument: grounding: what to find; calculate: an expression, #n is the number that step n gave; ocr: where.
        boxes: grounding: all that was found; referring and ocr: the one box that is looked at.
        result: referring: what is in the box; calculate: the number; ocr: the text.
        description: the step in words.
    """

    function: Function
    argument: Annotated[str, Field(max_length=200)]
    boxes: Annotated[list[Box], Field(max_length=MOST_BOXES)]
    result: Annotated[str, Field(max_length=300)]
    description: Annotated[str, Field(max_length=500)]


class Content(Closed):
    """A version's own fields; what a model that evolves has to reply with."""

    objects: Annotated[list[Name], Field(max_length=20)]
    skills: Annotated[list[Skill], Field(max_length=9)]
    steps: Annotated[list[Step], Field(max_length=12)]
    form: Form
    question: Text
    answer: Text


class Version(Closed):
    """One good version of an item: a seed (round 0), or what a round kept.

    Attributes:
        parent: id of the version that it was made from and judged against.
        difficulty: 1 to 10, of the judge; None where nobody has judged it yet.
        model: who wrote it; prompt: with what; request: the key of its request in the store.
        memo: the evolver's own, for its next round.
    """

    id: str
    parent: str | None = None
    round: int = 0
    direction: Direction | None = None
    content: Content
    difficulty: float | None = None
    model: str | None = None
    prompt: str | None = None
    request: str | None = None
    license: str | None = None
    memo: dict[str, Any] = {}


def as_told(content: Content, direction: Direction | None, chain: bool) -> tuple[str, str]:
    """Question and answer as records hold them. With `chain`, those of a cognitive version tell its steps first."""
    if not chain or direction != "cognitive":
        return content.question, content.answer
    told = [step.description.strip().rstrip(".") for step in content.steps if step.description.strip()]
    return f"{content.question} {CUE}", ". ".join([*told, f"answer: {content.answer}"])


def draw(*of: object) -> random.Random:
    """A generator for this one purpose: the same on every machine, whatever else was drawn before."""
    return random.Random(hashlib.sha256("/".join(map(str, of)).encode()).digest())
