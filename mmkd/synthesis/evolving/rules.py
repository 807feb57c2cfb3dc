"""What a new version has to be before anybody is asked about it: the form of its evolution, and new."""

from __future__ import annotations

import hashlib

from mmkd.synthesis.evolving.items import FORMS, Content, Direction
from mmkd.synthesis.evolving.outcomes import Rejection
from mmkd.synthesis.same_answer import plain

OFF, REPEATED = "not the evolution asked for", "a question that is there already"


def check_rules(direction: Direction, parent: Content, child: Content) -> None:
    """The objective of each evolution, as far as fields show it.

    Perceptual: as many steps, objects and skills as the parent, other objects (equal difficulty). Cognitive: more steps
    or more skills, none of both fewer. Both keep the form; interaction takes another of the 17. Where the parent, a
    seed that nobody has annotated, has no steps, lengths are not compared.

    Raises: Rejection.
    """
    if plain(child.question) == plain(parent.question) and plain(child.answer) == plain(parent.answer):
        raise Rejection(REPEATED, "it is its parent")
    known = bool(parent.steps)
    was, now = _lengths(parent), _lengths(child)
    if direction == "interaction":
        if child.form not in FORMS or child.form == parent.form:
            raise Rejection(
                OFF, f"its form is {child.form!r}, the parent's {parent.form!r}; it takes another of the 17"
            )
    elif child.form != parent.form:
        raise Rejection(
            OFF, f"its form is {child.form!r}; that of a {direction} version is its parent's, {parent.form!r}"
        )
    elif direction == "perceptual":
        if known and was != now:
            raise Rejection(OFF, f"it has (steps, objects, skills) {now}, its parent {was}; they have to be equal")
        if {plain(name) for name in child.objects} == {plain(name) for name in parent.objects}:
            raise Rejection(OFF, f"it asks about the same objects as its parent ({', '.join(child.objects)})")
    elif known and (now[0] < was[0] or now[2] < was[2] or (now[0], now[2]) == (was[0], was[2])):
        raise Rejection(OFF, f"it has (steps, objects, skills) {now}, its parent {was}; steps or skills have to grow")


def _lengths(content: Content) -> tuple[int, int, int]:
    return len(content.steps), len(content.objects), len(content.skills)


class Questions:
    """All questions that were ever kept, by image; a new one may not repeat them."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()  # digests, since there may be many

    def add(self, image: str, question: str) -> None:
        self._seen.add(_digest(image, question))

    def check(self, image: str, question: str) -> None:
        """Raises Rejection where it was asked of this image before."""
        if _digest(image, question) in self._seen:
            raise Rejection(REPEATED, "it is asked of this image already")


def _digest(image: str, question: str) -> bytes:
    return hashlib.blake2b(f"{image} {plain(question)}".encode(), digest_size=16).digest()
