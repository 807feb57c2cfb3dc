"""New questions written by a model that sees the picture, or by one that only reads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.augmentors.presence import asked_for_presence, checked_share
from mmkd.synthesis.competing.augmentors.registry import Draft, Parent, Wanted, register
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling

HARD = ("same_task", "more_steps", "constraint", "other_form")
EASY = ("rarer",)


class NewQuestion(BaseModel):
    question: str = Field(min_length=1, max_length=2000)


def check(config: CompeteConfig, options: dict[str, Any]) -> None:
    """Raises ConfigError where what it would write could not be judged, or not be asked for."""
    if config.judge.model is None:
        raise ConfigError(
            "config: augment.name is llm, whose questions have no known answer, and judge.model is missing: without it "
            "labels judge. Give judge.model, or take an augmentor that knows its answers, as grounded does."
        )
    _check_absent(options["model"], options.get("absent", 0.0))


def _check_absent(model: ModelSection, absent: float) -> None:
    if checked_share(absent) and model.language is not None:
        raise ConfigError(
            f"config: augment.absent is {absent} and augment.model a language model, which does not see what "
            "is absent; give augment.model as vlm or endpoint, or leave absent out."
        )


@register("llm", check)
def llm(
    wanted: Wanted, model: ModelSection, temperature: float = 1.0, max_tokens: int = 256, absent: float = 0.0
) -> Iterator[Draft]:
    """One question for each parent, by the prompt compete_augment: from a difficult item a variant of the task, one
    with more steps, with another constraint or in another form; from an easy one a rarer one.

    Args:
        model: who writes; a language model gets the words without the picture.
        absent: share of the drafts that ask, by the prompt compete_presence, for something that the picture does not
            hold (UniversalNER, arXiv 2308.03279); for each of them one more asks for something that it does.

    Raises: ConfigError for a share above a half, or one above 0 for a model that sees no picture; what `Asker.answer`
        raises.
    """
    _check_absent(model, absent)
    template, sees = prompt("compete_augment"), model.language is None
    presence, about = prompt("compete_presence"), asked_for_presence(wanted, absent)
    parents = {str(place): parent for place, parent in enumerate(wanted.parents)}

    def request(name: str, parent: Parent) -> Request:
        rng = random.Random(f"{wanted.seed}/{wanted.round}/{parent.item.id}/{parent.number}")
        kind = rng.choice(HARD if parent.hard else EASY)
        item, used = parent.item, template
        turns = template.render(kind=kind, question=item.question, answer=item.answer, sees=sees)
        if int(name) in about:
            used, turns = presence, presence.render(question=item.question, absent=about[int(name)])
        sampling = Sampling(temperature, 1.0, max_tokens, rng.randrange(2**31))
        images = item.images if sees else ()
        return Request(name, turns, images, sampling, NewQuestion, prompt=str(used), license=item.license)

    with wanted.open(model, "augment") as asker:
        requests = (request(name, parent) for name, parent in parents.items())
        answers = {
            answer.request.id: answer
            for answer in shown(asker.answer(requests), asker.tally, "new questions", len(parents))
        }
        license = asker.backend.license
    for name, parent in parents.items():
        answer = answers[name]
        if isinstance(answer.value, NewQuestion):
            text = answer.value.question.strip()
            yield Draft(parent, text, None, parent.item.task, answer.request.prompt, license)
        else:
            yield Draft(parent, problem=answer.reason, kind=answer.kind)
