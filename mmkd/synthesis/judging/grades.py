"""A judge that replies with one digit: what a small model can learn, and whose doubt can be read.

A judge of words (`judge.Judge`) gives its reasons, and a whole number of its own choosing. Here the score is the
expectation over the ten digits, by their probabilities where the reply says its own, as in G-Eval (Liu et al. 2023) and
Self-J: finer than the digit alone. A digit is one token in the tokenizers in use, which "10" is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.judging.judge import Item, OrderBias, Verdict, replied
from mmkd.synthesis.judging.scales import CORRECTNESS, Scale
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Answer, Request, Sampling, ScoredToken

HIGHEST = 9
LIKELIEST = 20  # tokens whose probabilities are asked for: the most that OpenAI's own servers give
LEAST_MASS = 0.5  # of the digits among these; less says that the model does not reply with grades


class GradeJudge:
    """Grades each answer of an item alone, so that no order can matter, and never shows the model a right answer: it
    has learned to do without.

    Args:
        asker: of a model that `mmkd judge records` made the training records of, or any that heeds the prompt.
        scale: on which scores are given; the digits are laid on it evenly.
        expected: the expectation over the digits, for which the back end has to give log-probabilities; else the digit
            that the model replies with.
    """

    def __init__(self, asker: Asker, scale: Scale = CORRECTNESS, expected: bool = True):
        self.asker, self.scale, self.expected = asker, scale, expected
        self.sampling = Sampling(max_tokens=4, log_probs=LIKELIEST if expected else 0)  # a space, the digit, the end
        self.bias = OrderBias()  # of none

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        """A verdict for each item, as they come. Raises what `Asker.answer` raises."""
        return (self._verdict(item, answers) for item, answers in replied(self.asker, items, self.request))

    def request(self, item: Item, place: int) -> Request:
        """The request that grades the item's answer number `place`."""
        template = prompt("judge_grade")
        turns = template.render(question=item.question, answer=item.answers[place])
        return Request(
            f"{item.id}#{place}", turns, item.images, self.sampling, may_be_cut=True, prompt=str(template),
            license=item.license,
        )  # fmt: skip

    def _verdict(self, item: Item, answers: Sequence[Answer]) -> Verdict:
        scores = []
        for answer in answers:
            if not answer.done:
                return Verdict(item, None, error=f"{answer.kind}: {answer.reason}")
            digit: float | None = digit_of(answer.text)
            if digit is None:
                return Verdict(item, None, error=f"no grade: {answer.text[:80]!r} is not one digit")
            if self.expected and (digit := expectation(answer.tokens or ())) is None:
                return Verdict(
                    item, None, error=f"no grade: {answer.text!r} has no log-probabilities of digits with it"
                )
            scores.append(self.scale.low + (self.scale.high - self.scale.low) * digit / HIGHEST)
        return Verdict(item, tuple(scores))


def expectation(tokens: Sequence[ScoredToken]) -> float | None:
    """The mean digit at the first token that is no space, by probability; None where digits have too little of it."""
    said = next((token for token in tokens if token.token.strip()), None)
    if said is None:
        return None
    mass = dict.fromkeys(range(HIGHEST + 1), 0.0)
    for token in said.top_logprobs or [said]:
        digit = digit_of(token.token)
        if digit is not None:
            mass[digit] += math.exp(token.logprob)  # "7" and " 7" are two tokens of one grade
    total = sum(mass.values())
    return sum(digit * share for digit, share in mass.items()) / total if total >= LEAST_MASS else None


def digit_of(text: str) -> int | None:
    """The digit that a text is, but for spaces around it."""
    said = text.strip()
    return int(said) if len(said) == 1 and said in "0123456789" else None
