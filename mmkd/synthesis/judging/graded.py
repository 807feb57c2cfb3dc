"""Answers of known quality: what a judge learns from, and what it is held against."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmkd.data.images import read_image
from mmkd.data.records import Record
from mmkd.evaluate.matching import exact
from mmkd.synthesis.judging.judge import Item
from mmkd.synthesis.judging.scales import Scale
from mmkd.synthesis.requests import digest

KIND_WORDS = 2  # questions that begin with the same words have answers of one kind


@dataclass(frozen=True)
class Graded:
    """One answer.

    Attributes:
        item: with the right answer as its reference.
        grade: on the scale.
        kind: right, wrong, or model.
        question: an id that the answers to one question share.
        picture: hash of the first picture; of the question where there is none.
    """

    item: Item
    grade: float
    kind: str
    question: str
    picture: str


class WrongAnswers:
    """Right answers to questions of the same kind, as often as they come: so the words of an answer, without the
    picture, do not tell whether it is wrong."""

    def __init__(self, records: Iterable[Record]):
        self._said: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for record in records:
            for question, answer in pairs(record):
                self._said[_kind(record, question)][answer] += 1

    def draw(self, record: Record, question: str, right: str, count: int, draw: random.Random) -> list[str]:
        """Up to `count` different ones."""
        others = {
            answer: often for answer, often in self._said[_kind(record, question)].items() if not exact(answer, right)
        }
        found: list[str] = []
        while others and len(found) < count:
            [answer] = draw.choices(list(others), list(others.values()))
            del others[answer]
            found.append(answer)
        return found


def graded(
    records: Iterable[Record], wrong: WrongAnswers, count: int, said: Sequence[Mapping[str, Record]], scale: Scale,
    seed: int,
) -> Iterator[Graded]:  # fmt: skip
    """For each question of each record: the right answer, `count` wrong ones, and those of models.

    Args:
        said: records with a model's answers, by the id of the record that it was asked.
    """
    met = Counter[str]()  # two sources may call a record alike
    for record in records:
        own = f"{record.source}/{record.id}"
        met[own] += 1
        own += f"~{met[own]}" if met[own] > 1 else ""
        answered = [dict(pairs(by_id[record.id])) for by_id in said if record.id in by_id]
        picture = hashlib.sha256(read_image(record.images[0])).hexdigest() if record.images else ""
        for place, (question, right) in enumerate(pairs(record)):
            name = f"{own}/{place}"
            draw = random.Random(f"{seed}/{name}")
            answers = [("right", right), *(("wrong", one) for one in wrong.draw(record, question, right, count, draw))]
            answers += [("model", one[question]) for one in answered if question in one]
            for number, (kind, answer) in enumerate(answers):
                item = Item(
                    f"{name}/{number}", question, (answer,), tuple(record.images), right, record.provenance.license
                )
                grade = scale.low + (scale.high - scale.low) * exact(answer, right)
                yield Graded(item, grade, kind, name, picture or digest(question))


def held_out(one: Graded, share: float) -> bool:
    """Whether an answer is kept from training: by its picture, so that no picture is on both sides."""
    return int(one.picture[:16], 16) < share * 2**64


def pairs(record: Record) -> list[tuple[str, str]]:
    """(question, answer) of a record."""
    turns = [turn for turn in record.turns if turn.role != "system"]
    return [(asked.text, answered.text) for asked, answered in zip(turns[::2], turns[1::2], strict=False)]


def _kind(record: Record, question: str) -> tuple[str, ...]:
    return (record.task, *question.lower().split()[:KIND_WORDS])
