"""When two texts are one answer."""

from __future__ import annotations

from collections import Counter

LONG = 4  # words from which answers are compared by their words, not as they are
OVERLAP = 0.8  # F1 of words
MOST_SAID = 12  # words around a short answer


def plain(text: str) -> str:
    """Lower case, single spaces, no punctuation: by which questions and answers are the same."""
    return " ".join("".join(c if c.isalnum() or c in "#-+" else " " for c in text.lower()).split())


def same_answer(said: str, answer: str) -> bool:
    """Whether a reply gives an answer: the same words; a short answer inside a few words; most words of a long one."""
    one, other = plain(said).split(), plain(answer).split()
    if not one or not other or one == other:
        return bool(one) and one == other
    if len(other) < LONG:
        return len(one) <= MOST_SAID and f" {' '.join(other)} " in f" {' '.join(one)} "
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other)) >= OVERLAP
