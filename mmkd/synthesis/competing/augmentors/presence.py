"""Which drafts ask for what a picture does not hold, and which, as many, for what it does: so "no" is not the likelier
answer."""

from __future__ import annotations

import random

from mmkd.errors import ConfigError
from mmkd.synthesis.competing.augmentors.registry import Wanted


def checked_share(absent: float) -> float:
    """Raises ConfigError for a share that cannot be balanced."""
    if not 0 <= absent <= 0.5:
        raise ConfigError(
            f"config: augment.absent is {absent}; allowed: 0 to 0.5, since as many drafts ask for what is there."
        )
    return absent


def drawn_for_presence(wanted: Wanted, absent: float) -> tuple[list[int], random.Random]:
    """Places of parents, by turns for something absent and for something there; and what drew them."""
    rng = random.Random(f"{wanted.seed}/{wanted.round}/absent")
    count = int(absent * len(wanted.parents) + 0.5)
    return rng.sample(range(len(wanted.parents)), min(2 * count, len(wanted.parents) // 2 * 2)), rng


def asked_for_presence(wanted: Wanted, absent: float) -> dict[int, bool]:
    """By the place of a parent: whether its draft asks for something absent. Others ask for neither."""
    places, _ = drawn_for_presence(wanted, absent)
    return {place: number % 2 == 0 for number, place in enumerate(places)}
