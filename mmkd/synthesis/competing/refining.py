"""Failed answers that a model mends, for pairs that differ only in what matters (SPaR, arXiv 2412.11605)."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mmkd.config.compete_schema import CompeteConfig, RefineSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.on_disk import ById, Made, Spool
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.competing.asking import open_role
from mmkd.synthesis.competing.assessing import Kind, Outcome, verdicts_of
from mmkd.synthesis.competing.filters import rouge_l, words
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.judging import judge as judging
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling


class Mended(BaseModel):
    fault: str = Field(min_length=1, max_length=4000)
    answer: str = Field(min_length=1, max_length=20_000)


@dataclass(frozen=True)
class Refined:
    """A mended answer that the judge accepted.

    Attributes:
        scores: of the mended and the failed answer.
        attempt: at which it was, from 1.
        kept: ROUGE-L of both answers: how much of the student's own words is left.
    """

    id: str
    answer: str
    failed: str
    scores: tuple[float, float]
    attempt: int
    kept: float

    def answers(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """(text, score) of the mended, then of the failed answer."""
        return (self.answer, self.scores[0]), (self.failed, self.scores[1])

    def row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Refined:
        return cls(**row | {"scores": tuple(row["scores"])})


@dataclass
class Refining:
    """What a round's refinements came to. `gone`: attempts that did not become a pair, by reason."""

    found: Mapping[str, Refined]
    asked: int
    gone: Counter[str]

    def counts(self) -> dict[str, Any]:
        """For the row of the round; `words kept` is the mean ROUGE-L of the pairs."""
        kept = sum(one.kept for one in self.found.values()) / max(len(self.found), 1)
        return {
            "asked": self.asked,
            "kept": len(self.found),
            "words kept": round(kept, 4),
            "gone": dict(sorted(self.gone.items())),
        }


def refine(
    config: CompeteConfig,
    section: RefineSection,
    out: Path,
    round: int,
    outcomes: Sequence[Outcome],
    items: Mapping[str, Item],
    teacher: ModelSection,
    log: RejectedLog,
) -> Refining:
    """Mended answers to the difficult items of a round, by item; put on disk as they come.

    An answer is accepted that the judge gives `floor` and more, and `gap` more than the student's, in both orders. One
    that is not is mended anew, from the student's own words and by another seed, up to `section.tries` times. What the
    student left empty has nothing to be mended.

    Args:
        teacher: mends where the section names nobody.

    Raises: what the model and the judge raise.
    """
    hard = ((place, one) for place, one in enumerate(outcomes) if one.kind is Kind.HARD and one.agree)
    left = Made(array("q", (place for place, one in hard if one.student.strip())), outcomes.__getitem__)
    found, gone_by, asked = Spool(), Counter[str](), len(left)
    for attempt in range(1, section.tries + 1):
        if not left:
            break

        def gone(place: int, name: str, kind: str, reason: str, attempt: int = attempt) -> None:
            gone_by[kind] += 1
            log.note(f"refinement {attempt}", place, name, BadRow(reason, kind))

        answers, drafted = _mended(config, section, out, round, attempt, left, items, teacher), array("q")
        for place, one in enumerate(left):
            said, problem = answers.get(place)
            if not said:
                gone(place, one.id, "no answer", problem)
            elif said == one.student.strip():
                gone(place, one.id, "nothing mended", "the faulty answer again")
            else:
                drafted.append(place)
        drafts = Made(drafted, lambda place, left=left, answers=answers: (left[place], answers.get(place)[0]))
        verdicts, accepted = _judged(config, out, drafts, items), set[int]()
        for number, (one, said) in enumerate(drafts):
            place, verdict = drafted[number], verdicts.get(number)
            if reason := _refused(config, verdict):
                gone(place, one.id, *reason)
                continue
            kept = rouge_l(words(said), words(one.student))
            found.append(Refined(one.id, said, one.student, verdict["scores"], attempt, kept).row())
            accepted.add(place)
        numbers = (number for place, number in enumerate(left.numbers) if place not in accepted)
        left = Made(array("q", numbers), outcomes.__getitem__)
    mended = Made(range(len(found)), lambda number: Refined.of(found.get(number)))
    return Refining(ById(mended), asked, gone_by)


def _mended(
    config: CompeteConfig,
    section: RefineSection,
    out: Path,
    round: int,
    attempt: int,
    outcomes: Sequence[Outcome],
    items: Mapping[str, Item],
    teacher: ModelSection,
) -> Spool:
    """Of each outcome, by its place: the mended answer, or nothing, and then why."""
    template = prompt("compete_refine")

    def request(one: Outcome) -> Request:
        item = items[one.id]
        turns = template.render(
            question=item.question, answer=one.student, better=one.teacher, reason=next(iter(one.reasons), "")
        )
        seed = random.Random(f"{config.seed}/refine/{round}/{one.id}/{attempt}").randrange(2**31)
        sampling = Sampling(section.temperature, 1.0, section.max_tokens, seed)
        return Request(one.id, turns, item.images, sampling, Mended, prompt=str(template), license=item.license)

    replies, begun = Spool(len(outcomes)), dict[str, int]()  # begun: places of those on their way

    def requests() -> Iterator[Request]:
        for place, one in enumerate(outcomes):
            begun[one.id] = place
            yield request(one)

    with open_role(section.model or teacher, out / "asked", "refine", config.reasks) as asker:
        for answer in shown(asker.answer(requests()), asker.tally, "mended answers", len(outcomes)):
            said = answer.value.answer.strip() if isinstance(answer.value, Mended) else ""
            replies.put(begun.pop(answer.request.id), [said, f"{answer.kind}: {answer.reason}"])
    return replies


def _judged(
    config: CompeteConfig, out: Path, drafts: Sequence[tuple[Outcome, str]], items: Mapping[str, Item]
) -> Spool:
    """Verdicts on mended and failed answers, by place."""

    def asked() -> Iterator[judging.Item]:
        for one, said in drafts:
            item = items[one.id]
            answers = said, one.student
            yield judging.Item(item.id, item.question, answers, tuple(item.images), item.reference, item.license)

    _, verdicts = verdicts_of(config, out, asked(), len(drafts))
    return verdicts


def _refused(config: CompeteConfig, verdict: dict[str, Any]) -> tuple[str, str] | None:
    """Kind and reason why a mended answer makes no pair, or None."""
    if verdict["scores"] is None:
        return "no verdict", verdict["error"]
    mended, failed = verdict["scores"]
    if mended < config.floor:
        return "still faulty", f"it gets {mended:g}, the floor is {config.floor:g}"
    if mended - failed < config.gap or not verdict["agree"]:
        return (
            "not clearly better",
            f"{mended:g} against {failed:g}{'' if verdict['agree'] else ', and the orders differ'}",
        )
    return None
