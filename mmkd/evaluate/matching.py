"""When an answer counts as right."""

from __future__ import annotations

import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(answer: str, truth: str) -> float:
    """1.0 if both are the same but for case, punctuation and outer spaces, else 0.0."""
    return float(_plain(answer) == _plain(truth))


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())
