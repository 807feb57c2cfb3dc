"""Answers and rationales as two tasks of one row (Distilling step-by-step, arXiv 2305.02301; VPD, arXiv 2312.03052).

The loss of a row is mean-token CE(answer) + lambda * mean-token CE(rationale), each normalised by its own length; an
answer without a rationale has the first term alone. A plain question is always followed by the answer, but in
`rationale_first`, so a trained model is asked as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from mmkd.data.records import Turn
from mmkd.data.rejected import BadRow

Mode = Literal["separate", "answer_first", "rationale_first"]
Kind = Literal["answer", "rationale"]

EXPLAIN = "Explain."  # asks for the rationale
CONCLUDE = "So what is the answer?"  # asks for the answer behind a rationale


@dataclass
class View:
    """A chat to train on; `kinds` says of each of its assistant turns what it is."""

    turns: list[Turn] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)

    def add(self, question: str, said: str, kind: Kind) -> None:
        self.turns += [Turn("user", question), Turn("assistant", said)]
        self.kinds.append(kind)


def views(turns: Sequence[Turn], mode: Mode) -> list[View]:
    """The one or two chats that a record's turns (checked: user and assistant alternate) are trained as.

    separate: the chat as it is; and, where there are rationales, a second one of the questions that have them, each
    followed by "Explain." and answered by its rationale. answer_first: "Explain." and the rationale follow the answer.
    rationale_first: question and "Explain.", the rationale, "So what is the answer?", the answer.
    """
    system = list(turns[:1]) if turns[0].role == "system" else []
    first, second = View(list(system)), View(list(system))
    for question, said in zip(turns[len(system) :: 2], turns[len(system) + 1 :: 2], strict=True):
        why, asked = said.rationale, f"{question.text} {EXPLAIN}"
        if why is None or mode == "separate":
            first.add(question.text, said.text, "answer")
            if why is not None:
                second.add(asked, why, "rationale")
        elif mode == "answer_first":
            first.add(question.text, said.text, "answer")
            first.add(EXPLAIN, why, "rationale")
        else:
            first.add(asked, why, "rationale")
            first.add(CONCLUDE, said.text, "answer")
    return [first, second] if second.kinds else [first]


def token_weights(answer: Sequence[int], kinds: Sequence[Kind], weight: float) -> tuple[list[float], int]:
    """What each token's loss counts: 1/length of its answer, weight/length of its rationale, 0 elsewhere; and how many
    answers there are.

    Args:
        answer: 1 where the assistant speaks; turns are runs of ones.
        kinds: of the turns, in order; more than there are where the last ones were left out to fit.

    Raises: BadRow where two turns of the assistant run into each other, so that they cannot be told apart.
    """
    runs = [(bool(speaks), len(list(run))) for speaks, run in groupby(answer)]
    if sum(speaks for speaks, _ in runs) > len(kinds):
        raise BadRow("its answers and rationales cannot be told apart in tokens.", "no rationale")
    found: list[float] = []
    left = iter(kinds)
    answers = 0
    for speaks, length in runs:
        kind = next(left) if speaks else None
        answers += kind == "answer"
        share = 0.0 if kind is None else (1.0 if kind == "answer" else weight) / length
        found += [share] * length
    return found, answers
