"""Rationales of verified programs, by the template or a writer whose every claim the trace holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmkd.synthesis.asking import Asker, answer_of
from mmkd.synthesis.programs.making.items import Item
from mmkd.synthesis.programs.rationale import rationale, tell
from mmkd.synthesis.programs.runner import Outcome
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling, Status

MOST_TOKENS = 160


class Teller:
    """Words for verified outcomes.

    Args:
        asker: who words them; None takes the template alone.
        boxes: whether the template places what it names by boxes.
    """

    def __init__(self, asker: Asker | None, boxes: bool = True):
        self.asker, self.boxes = asker, boxes

    def requests(self, verified: Iterable[tuple[Item, Outcome]]) -> Iterator[Request]:
        for item, outcome in verified:
            yield self._request(item, outcome)

    def text(self, item: Item, outcome: Outcome) -> str:
        """The kept draft where it holds, else the template's words."""
        return rationale(outcome, self._draft(item, outcome), self.boxes)

    def _request(self, item: Item, outcome: Outcome) -> Request:
        template = prompt("tell_trace")
        turns = template.render(question=item.question, notes=tell(outcome.events, outcome.answer, self.boxes))
        return Request(item.id, turns, (), Sampling(max_tokens=MOST_TOKENS), prompt=str(template))

    def _draft(self, item: Item, outcome: Outcome) -> str | None:
        if self.asker is None:
            return None
        request = self._request(item, outcome)
        entry = self.asker.store.last(self.asker.key(request.content()))
        if entry is None or entry.status is not Status.DONE:
            return None
        return answer_of(entry, request).text
