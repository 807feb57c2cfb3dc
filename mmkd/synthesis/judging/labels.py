"""The judge where truth is known: no model, no doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mmkd.evaluate.matching import exact
from mmkd.synthesis.judging.judge import Item, Verdict
from mmkd.synthesis.judging.scales import CORRECTNESS, Scale


class LabelScorer:
    """Grades by the item's reference: `match(answer, reference)`, 0 to 1, laid on the scale.

    An item without a reference gets no score.
    """

    def __init__(self, scale: Scale = CORRECTNESS, match: Callable[[str, str], float] = exact):
        self.scale, self.match = scale, match

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        for item in items:
            if item.reference is None:
                yield Verdict(item, None, error="no reference: the item has no label to be scored by")
                continue
            span = self.scale.high - self.scale.low
            scores = tuple(self.scale.low + span * self.match(answer, item.reference) for answer in item.answers)
            yield Verdict(item, scores)
