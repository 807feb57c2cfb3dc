"""Drafts of templates, put in other words by a language model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmkd.config.synthesis_schema import ModelSection
from mmkd.synthesis.competing.augmentors.registry import Draft, Wanted
from mmkd.synthesis.progress import shown
from mmkd.synthesis.requests import Answer, Sampling
from mmkd.synthesis.rewording import rewording_request, worded

SAMPLING = Sampling(temperature=0.3, max_tokens=64)  # of a small model, what is likelier is more often the same
AGAIN = "asked in these words before"


def rewritten(wanted: Wanted, drafts: Sequence[Draft], model: ModelSection) -> Iterator[Draft]:
    """The drafts in their order, in the model's words where they ask the same (`rewording.objection`) and nobody asked
    them on this picture before; else as they were. Either way a draft holds both texts.

    Raises: what `Asker.answer` raises.
    """
    asked = {str(place): draft for place, draft in enumerate(drafts) if not draft.problem}
    requests = (rewording_request(name, one.question, _sampling(wanted, name, one)) for name, one in asked.items())
    with wanted.open(model, "rewrite") as asker:
        replies = shown(asker.answer(requests), asker.tally, "other words", len(asked))
        answers = {answer.request.id: answer for answer in replies}
        license = asker.backend.license
    taken: set[tuple[tuple[str, ...], str]] = set()
    for place, draft in enumerate(drafts):
        yield _in_words(wanted, draft, answers[str(place)], license, taken) if str(place) in asked else draft


def _in_words(
    wanted: Wanted, draft: Draft, answer: Answer, license: str | None, taken: set[tuple[tuple[str, ...], str]]
) -> Draft:
    wording, images = worded(draft.question, answer), draft.parent.item.images
    draft = replace(draft, template=draft.question, said=wording.said, writer=wording.model)
    if wording.objection:
        return replace(draft, objection=wording.objection)
    if (images, wording.question.lower()) in taken or wanted.known.near(images, wording.question):
        return replace(draft, objection=AGAIN)
    taken.add((images, wording.question.lower()))
    return replace(draft, question=wording.question, prompt=answer.request.prompt, license=license)


def _sampling(wanted: Wanted, name: str, draft: Draft) -> Sampling:
    """Drawn for each draft, so that one template is not told in one way on all pictures."""
    rng = random.Random(f"{wanted.seed}/{wanted.round}/{name}/{draft.parent.item.id}/words")
    return replace(SAMPLING, seed=rng.randrange(2**31))
