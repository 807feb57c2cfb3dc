"""A model as judge: it sees the image, grades on a scale, and compares two answers in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.judging.scales import CORRECTNESS, Scale
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.raised import as_known
from mmkd.synthesis.requests import Answer, Request, Sampling


@dataclass(frozen=True)
class Item:
    """What is graded.

    Attributes:
        answers: one, or two to be compared.
        reference: an answer known to be right, where there is one.
        license: of the item.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    images: tuple[str | bytes, ...] = ()
    reference: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The grades of an item.

    Attributes:
        scores: of each answer, on the scale; the mean of both orders. None where the item has no grade: a reply that
            could not be used is an error and never a score.
        orders: scores as given, by order: (of answer 0, of answer 1) each time. One order for a single answer.
        agree: whether both orders prefer the same answer, or neither; True for a single answer.
        reasons: the judge's words, by order.
        error: why there is no grade.
    """

    item: Item
    scores: tuple[float, ...] | None
    orders: tuple[tuple[int, ...], ...] = ()
    agree: bool = True
    reasons: tuple[str, ...] = ()
    error: str = ""


@dataclass
class OrderBias:
    """How much the order of two answers changes the verdict.

    Attributes:
        compared, disagreed: pairs graded in both orders; of these, pairs whose preference changed with the order.
        first_gain: summed points that an answer got more for standing first.
    """

    compared: int = 0
    disagreed: int = 0
    first_gain: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        if len(verdict.orders) < 2:
            return
        (a_first, b_second), (a_second, b_first) = verdict.orders
        self.compared += 1
        self.first_gain += ((a_first - a_second) + (b_first - b_second)) / 2
        if not verdict.agree:
            self.disagreed += 1
            if len(self.examples) < 20:
                self.examples.append(verdict.item.id)

    def __str__(self) -> str:
        if not self.compared:
            return "no pairs compared"
        return (
            f"{self.disagreed:,} of {self.compared:,} pairs ({self.disagreed / self.compared:.1%}) change their winner "
            f"with the order; standing first is worth {self.first_gain / self.compared:+.2f} points"
        )


class Judge:
    """Grades items with the model of an Asker.

    Args:
        scale: with its rubric.
        limits: earlier values of max_tokens, see `as_known`.
        bias: counts what the order of two answers does.
    """

    def __init__(
        self,
        asker: Asker,
        scale: Scale = CORRECTNESS,
        sampling: Sampling | None = None,
        limits: Sequence[int] = (),
    ):
        self.asker, self.scale, self.limits = asker, scale, limits
        self.sampling = sampling or Sampling(max_tokens=400)
        self.bias = OrderBias()
        self._pair, self._one = scale.schema("first", "second"), scale.schema("score")

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        """A verdict for each item, as they come. Raises what `Asker.answer` raises."""

        def request(item: Item, order: int) -> Request:
            return as_known(self.asker, self.request(item, order), self.limits)

        for item, answers in replied(self.asker, items, request):
            verdict = verdict_of(item, answers)
            self.bias.add(verdict)
            yield verdict

    def request(self, item: Item, order: int) -> Request:
        """The request that grades an item; of a pair, order 1 shows the answers the other way round."""
        values = {"question": item.question, "reference": item.reference, "rubric": self.scale.rubric}
        values |= {"low": self.scale.low, "high": self.scale.high}
        if len(item.answers) == 1:
            template, schema = prompt("judge_one"), self._one
            values["answer"] = item.answers[0]
        elif len(item.answers) == 2:
            template, schema = prompt("judge_pair"), self._pair
            values["first"], values["second"] = item.answers[order], item.answers[1 - order]
        else:
            raise ValueError(f"item {item.id} has {len(item.answers)} answers; one or two can be graded")
        return Request(
            f"{item.id}#{order}", template.render(**values), item.images, self.sampling, schema, prompt=str(template),
            license=item.license,
        )  # fmt: skip


def replied(
    asker: Asker, items: Iterable[Item], request: Callable[[Item, int], Request]
) -> Iterator[tuple[Item, list[Answer]]]:
    """Each item with the replies to its requests, one for each of its answers, in that order; items as they end.

    Args:
        request: that of an item and a number, called ITEM#NUMBER.

    Raises: what `Asker.answer` raises; ValueError for two items of one name.
    """
    begun: dict[str, tuple[Item, dict[int, Answer]]] = {}

    def requests() -> Iterator[Request]:
        for item in items:
            if item.id in begun:
                raise ValueError(f"two items are called {item.id}")
            begun[item.id] = item, {}
            for number in range(len(item.answers)):
                yield request(item, number)

    for answer in asker.answer(requests()):
        name, _, number = answer.request.id.rpartition("#")
        item, answers = begun[name]
        answers[int(number)] = answer
        if len(answers) == len(item.answers):
            del begun[name]
            yield item, [answers[place] for place in sorted(answers)]


def verdict_of(item: Item, answers: list[Answer]) -> Verdict:
    """Of the judge's replies in order 0 (and 1): no score unless every one of them could be used."""
    failed = next((answer for answer in answers if answer.value is None), None)
    if failed is not None:
        return Verdict(item, None, error=f"{failed.kind}: {failed.reason}")
    values = [answer.value.model_dump() for answer in answers if answer.value is not None]
    reasons = tuple(value["reason"] for value in values)
    if len(item.answers) == 1:
        score = values[0]["score"]
        return Verdict(item, (float(score),), ((score,),), True, reasons)
    straight, turned = (values[0]["first"], values[0]["second"]), (values[1]["second"], values[1]["first"])
    scores = tuple((one + other) / 2 for one, other in zip(straight, turned, strict=True))
    agree = _sign(straight[0] - straight[1]) == _sign(turned[0] - turned[1])
    return Verdict(item, scores, (straight, turned), agree, reasons)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
