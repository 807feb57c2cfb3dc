"""The test of visual independence: who answers without the image has no use for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.progress import shown
from mmkd.synthesis.replies import EMPTY
from mmkd.synthesis.requests import Answer, Request
from mmkd.synthesis.same_answer import same_answer

UNKNOWN = "blind test unknown"  # a kind, for reports


@dataclass(frozen=True)
class Blind:
    """Why a question does not stay: it is answered without the image, or nobody knows, since replies are missing."""

    unknown: bool
    reason: str


def answered_blind(
    asker: Asker, requests: Sequence[Request], answers: Mapping[str, str], tries: int
) -> dict[str, Blind]:
    """The questions that do not stay, by name, in the order of `answers`.

    A question is answered blind where all of its tries are right, so one with a wrong one is not tried again. With one
    try a guess would do: half of all questions for yes or no would go. A model that always says yes still takes those
    whose answer is yes, so look at the answers' balance in the data card. An empty reply is a wrong one. Where a reply
    is missing, refused or cut off before it said a word, and none of the others is wrong, nothing is known.

    Args:
        requests: without images, each called NAME#NUMBER; answers: the right one of each question, by name.

    Raises: what `Asker.answer` raises.
    """
    left = set(answers)  # whose tries so far are right, or may have been
    missing: dict[str, Answer] = {}
    for number in range(tries):
        asked = [one for one in requests if one.id.endswith(f"#{number}") and _name(one) in left]
        label = f"asking blind, try {number + 1} of {tries}"
        for answer in shown(asker.answer(asked), asker.tally, label, len(asked)):
            name = _name(answer.request)
            if not answer.done and answer.kind != EMPTY:
                missing[name] = answer
            elif not (answer.done and same_answer(answer.text, answers[name])):
                left.discard(name)
    found = {}
    for name in (name for name in answers if name in left):
        if name in missing:
            found[name] = Blind(True, f"a reply without the image is missing: {_why(missing[name])}")
        else:
            found[name] = Blind(False, f"{tries} of {tries} answers without the image are right")
    return found


def _name(request: Request) -> str:
    return request.id.rpartition("#")[0]


def _why(answer: Answer) -> str:
    return f"{answer.kind}: {answer.reason}"
