"""When an answer counts as right."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(answer: str, truth: str) -> float:
    """1.0 if both are the same but for case, punctuation and outer spaces, else 0.0."""
    return float(_plain(answer) == _plain(truth))


def numeric(answer: str, truth: str, tolerance: float = 1e-6) -> float:
    """1.0 if both are numbers that differ by no more than a relative `tolerance`, else 0.0."""
    try:
        one, other = float(answer), float(truth)
    except ValueError:
        return 0.0
    return float(math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance))


def vqa_soft(answer: str, truths: Sequence[str]) -> float:
    """Soft accuracy over human answers (Antol et al. 2015): the mean, over leaving out one human at a time, of
    min(1, humans who gave this answer / 3). One truth alone is matched exactly."""
    same = [exact(answer, truth) for truth in truths]
    if len(same) < 2:
        return sum(same)
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())
