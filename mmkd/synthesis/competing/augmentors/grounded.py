"""New questions about scenes of coloured shapes, true by what the classical tools see."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.images import open_image
from mmkd.data.scene_questions import DESCRIPTIONS, Question, Thing, offers
from mmkd.synthesis.competing.augmentors.presence import checked_share, drawn_for_presence
from mmkd.synthesis.competing.augmentors.registry import Draft, Parent, Wanted, register
from mmkd.synthesis.competing.augmentors.rewriting import rewritten
from mmkd.synthesis.programs.backends.classical import ClassicalDetector

Images = tuple[str, ...]
Offers = dict[str, dict[str, dict[str, list[Question]]]]  # type -> form -> answer -> questions
NOTHING = ("no", "0")
ABOUT_PRESENCE = [(name, form) for name in ("existence", "count") for form in DESCRIPTIONS]


def check(_: CompeteConfig, options: dict[str, Any]) -> None:
    checked_share(options.get("absent", 0.0))


@register("grounded", check)
def grounded(wanted: Wanted, absent: float = 0.0, rewrite: ModelSection | None = None) -> Iterator[Draft]:
    """From a difficult item a question of its form (of its type, where that has no more) that was not asked on this
    picture yet; from an easy one a question of another type. The answer is drawn before the question, as in the scenes
    themselves, and no held-out composition is named.

    Args:
        absent: share of the drafts that ask, in their place, for something that the picture does not hold: whether it
            is there ("no"), or how many ("0"), as UniversalNER (arXiv 2308.03279) asks for absent types. For each of
            them one more asks in the same form for something that is there, so that "no" is not the likelier answer.
        rewrite: who puts the questions in other words; nobody by default. See `rewriting`.

    Raises: ConfigError for a share above a half; what `Asker.answer` raises.
    """
    drafts = _drafts(wanted, checked_share(absent))
    yield from drafts if rewrite is None else rewritten(wanted, list(drafts), rewrite)


def _drafts(wanted: Wanted, absent: float) -> Iterator[Draft]:
    pictures = _Pictures(wanted)
    paired = _pairs(wanted, absent, pictures)
    for place, parent in enumerate(wanted.parents):
        item = parent.item
        rng = random.Random(f"{wanted.seed}/{wanted.round}/{item.id}/{parent.number}")
        found = paired.get(place) or _draw(pictures.offers(item.images), parent, pictures.asked(item.images), rng)
        if isinstance(found, str):
            yield Draft(parent, problem=found, kind="no question to draw")
        else:
            pictures.take(item.images, found)
            yield Draft(parent, found.text, found.answer, found.type if item.task != "scene" else "scene")


class _Pictures:
    """What can be asked of each picture, and what is: in the pool, or drafted a moment ago."""

    def __init__(self, wanted: Wanted):
        self._known, self._detector = wanted.known, ClassicalDetector()
        self._offers: dict[Images, Offers] = {}
        self._taken: dict[Images, set[str]] = {}

    def offers(self, images: Images) -> Offers:
        if images not in self._offers:
            self._offers[images] = _offers(self._detector, images)
        return self._offers[images]

    def asked(self, images: Images) -> set[str]:
        return set(self._known.questions(images)) | self._taken.get(images, set())

    def take(self, images: Images, question: Question) -> None:
        self._taken.setdefault(images, set()).add(question.text)


def _pairs(wanted: Wanted, absent: float, pictures: _Pictures) -> dict[int, Question]:
    """By the place of its parent: a question for something absent, and one of the same form for something present.

    Where a pair of pictures has no such two left, both parents get their ordinary draft.
    """
    places, rng = drawn_for_presence(wanted, absent)
    found: dict[int, Question] = {}
    for without, holding in zip(places[::2], places[1::2], strict=True):
        one, other = (wanted.parents[place].item.images for place in (without, holding))
        for name, form in rng.sample(ABOUT_PRESENCE, len(ABOUT_PRESENCE)):
            missing = _left(pictures, one, name, form, absent=True)
            present = _left(pictures, other, name, form, absent=False)
            if missing and present:
                for place, images, questions in ((without, one, missing), (holding, other, present)):
                    found[place] = rng.choice(questions)
                    pictures.take(images, found[place])
                break
    return found


def _left(pictures: _Pictures, images: Images, name: str, form: str, absent: bool) -> list[Question]:
    answers = pictures.offers(images).get(name, {}).get(form, {})
    asked = pictures.asked(images)
    return [
        one
        for answer, questions in answers.items()
        for one in questions
        if (answer in NOTHING) == absent and one.text not in asked
    ]


def _offers(detector: ClassicalDetector, images: Images) -> Offers:
    if len(images) != 1:
        return {}
    things = [
        Thing(one.cell[0], one.cell[1], *one.label.split(), image=images[0])
        for one in detector.detect(open_image(images[0]), "thing")
        if one.cell is not None
    ]
    return offers(things, held_out=False)


def _draw(every: Offers, parent: Parent, asked: set[str], rng: random.Random) -> Question | str:
    """A question, or why there is none."""
    own = next(
        (
            (name, form)
            for name, forms in every.items()
            for form, answers in forms.items()
            if any(one.text == parent.item.plain_question for questions in answers.values() for one in questions)
        ),
        None,
    )
    if own is None:
        return "the tools do not know the parent's question as one about coloured shapes in a grid"
    if parent.hard:
        choices = [[every[own[0]][own[1]]], list(every[own[0]].values())]
    else:
        others = [name for name in every if name != own[0]]
        choices = [list(every[name].values()) for name in rng.sample(others, len(others))]
    for forms in choices:
        for answers in rng.sample(forms, len(forms)):
            for answer in rng.sample(sorted(answers), len(answers)):
                left = [one for one in answers[answer] if one.text not in asked]
                if left:
                    return rng.choice(left)
    return "every such question about this picture is asked already"
