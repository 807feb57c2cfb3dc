"""What the questions that are left can cost, told before one is asked."""

from __future__ import annotations

from collections.abc import Sequence

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Record
from mmkd.synthesis.answering import Relabel
from mmkd.synthesis.backends import Call
from mmkd.synthesis.client import most_of
from mmkd.synthesis.limits import priced
from mmkd.synthesis.requests import Status, Usage


def left_to_ask(relabel: Relabel, records: Sequence[Record], good: Sequence[int], endpoint: EndpointSection) -> str:
    """How many of the `good` records the store has no whole answer to, and the most that their questions can use, each
    asked once; where it has replies, also what they would use if they were like those. Asks nothing."""
    rows, asked, most = 0, 0, Usage()
    for index in good:
        requests = list(relabel.left(records[index]))
        for request in requests:
            most += most_of(endpoint, Call("", request.turns, request.images, request.sampling))
            # An answer that is still to come is empty here, and no longer than it may be.
            to_come = sum(turn.role == "assistant" and not turn.text for turn in request.turns)
            most += priced(endpoint.price, to_come * request.sampling.max_tokens, 0)
        rows, asked = rows + bool(requests), asked + len(requests)
    if not asked:
        return "nothing left to ask"
    text = f"{rows:,} of {len(records):,} rows to ask, {asked:,} questions: at most {_told(most)}, each asked once"
    counts = relabel.asker.store.counts()
    done = sum(n for (model, status, _), n in counts.items() if model == endpoint.model and status is Status.DONE)
    if done:
        spent, share = relabel.asker.store.spent(endpoint.model), asked / done
        about = Usage(round(spent.prompt_tokens * share), round(spent.answer_tokens * share), spent.cost * share)
        text += f"; about {_told(about)} if they are like the {done:,} answered so far"
    return text


def _told(usage: Usage) -> str:
    tokens = f"{usage.prompt_tokens:,} prompt and {usage.answer_tokens:,} answer tokens"
    return tokens + (f", cost {usage.cost:,.4f}" if usage.cost else "")
