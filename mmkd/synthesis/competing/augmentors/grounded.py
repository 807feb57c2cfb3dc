"""New questions about scenes of coloured shapes, true by what the classical tools see."""

from __future__ import annotations

import random
from collections.abc import Iterator

from mmkd.data.images import open_image
from mmkd.data.scene_questions import Question, Thing, offers
from mmkd.synthesis.competing.augmentors.registry import Draft, Parent, Wanted, register
from mmkd.synthesis.programs.backends.classical import ClassicalDetector

Offers = dict[str, dict[str, dict[str, list[Question]]]]  # type -> form -> answer -> questions


@register("grounded")
def grounded(wanted: Wanted) -> Iterator[Draft]:
    """From a difficult item a question of its form (of its type, where that has no more) that was not asked on this
    picture yet; from an easy one a question of another type. The answer is drawn before the question, as in the scenes
    themselves, and no held-out composition is named.
    """
    seen: dict[tuple[str, ...], Offers] = {}
    detector = ClassicalDetector()
    taken: set[tuple[tuple[str, ...], str]] = set()  # drafted a moment ago
    for parent in wanted.parents:
        item = parent.item
        if item.images not in seen:
            seen[item.images] = _offers(detector, item.images)
        asked = set(wanted.known.questions(item.images)) | {text for images, text in taken if images == item.images}
        rng = random.Random(f"{wanted.seed}/{wanted.round}/{item.id}/{parent.number}")
        found = _draw(seen[item.images], parent, asked, rng)
        if isinstance(found, str):
            yield Draft(parent, problem=found, kind="no question to draw")
        else:
            taken.add((item.images, found.text))
            yield Draft(parent, found.text, found.answer, found.type if item.task != "scene" else "scene")


def _offers(detector: ClassicalDetector, images: tuple[str, ...]) -> Offers:
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
            if any(one.text == parent.item.question for questions in answers.values() for one in questions)
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
