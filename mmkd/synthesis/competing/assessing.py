"""Both sides' answers against each other: scores, and what follows from them for each item."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from mmkd.config.compete_schema import CompeteConfig
from mmkd.data.on_disk import Made, Spool
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.competing.asking import open_role
from mmkd.synthesis.competing.folder import verdict_limits
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.judging import judge as judging
from mmkd.synthesis.judging.calibration import calibrate
from mmkd.synthesis.judging.grades import GradeJudge
from mmkd.synthesis.judging.judge import Judge, OrderBias, Verdict
from mmkd.synthesis.judging.labels import LabelScorer
from mmkd.synthesis.judging.scales import CORRECTNESS
from mmkd.synthesis.progress import followed
from mmkd.synthesis.requests import Sampling


class Kind(StrEnum):
    """What an item is after its assessment. Only the first two are learned from the teacher."""

    HARD = "hard"  # the teacher is good enough, and clearly better
    EASY = "easy"  # the teacher is good enough, and not clearly better
    WIN = "win"  # the student is clearly better
    WEAK = "weak"  # neither: the teacher's own answer is below the floor
    UNSCORED = "unscored"  # no verdict: an error, and never "equally good"


@dataclass(frozen=True)
class Outcome:
    """One item's assessment.

    Attributes:
        scores: of teacher and student, 1 to 10, each the mean of both orders; None where there is no verdict.
        agree: whether both orders prefer the same side.
    """

    id: str
    kind: Kind
    teacher: str
    student: str
    scores: tuple[float, float] | None
    agree: bool = True
    reasons: tuple[str, ...] = ()
    error: str = ""

    def row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Outcome:
        scores = tuple(row["scores"]) if row["scores"] is not None else None
        return cls(**row | {"kind": Kind(row["kind"]), "scores": scores, "reasons": tuple(row["reasons"])})


class Scorer(Protocol):
    def judge(self, items: Any) -> Iterator[Verdict]: ...


@contextmanager
def open_judge(config: CompeteConfig, out: Path) -> Iterator[tuple[Scorer, OrderBias]]:
    """The config's judge, and what it finds out about the order of answers (nothing where labels judge)."""
    if config.judge.model is None:
        yield LabelScorer(), OrderBias()
        return
    with open_role(config.judge.model, out / "asked", "judge", config.reasks) as asker:
        if config.judge.form == "digit":
            judge = GradeJudge(asker)
        else:
            sampling = Sampling(max_tokens=config.judge.max_tokens)
            judge = Judge(asker, sampling=sampling, limits=verdict_limits(out, config))
        yield judge, judge.bias


def kind_of(scores: tuple[float, float] | None, gap: float, floor: float) -> Kind:
    """Of the scores of teacher and student. `gap` and `floor`: tau, and the least score that is worth learning."""
    if scores is None:
        return Kind.UNSCORED
    teacher, student = scores
    if student - teacher >= gap:
        return Kind.WIN
    if teacher < floor:
        return Kind.WEAK
    return Kind.HARD if teacher - student >= gap else Kind.EASY


def assess(
    config: CompeteConfig, out: Path, items: Sequence[Item], said: Mapping[str, str], log: RejectedLog
) -> tuple[Sequence[Outcome], OrderBias]:
    """Every item that has the answers of both, assessed, in their order.

    Args:
        items: with the teacher's answers; said: the student's, by id.

    Raises: DataError once `too_many` items got no verdict; what the judge raises.
    """
    both = array("q", (number for number, item in enumerate(items) if item.id in said))
    pairs = Made(both, lambda number: (items[number], said[items[number].id]))
    asked = (
        judging.Item(item.id, item.question, (item.answer, answer), tuple(item.images), item.reference, item.license)
        for item, answer in pairs
    )
    bias, verdicts = verdicts_of(config, out, asked, len(both))
    for index, (item, _) in enumerate(pairs):
        noted(log, "judge", index, item.id, verdicts.get(index))

    def outcome(index: int) -> Outcome:
        (item, answer), verdict = pairs[index], verdicts.get(index)
        scores = (verdict["scores"][0], verdict["scores"][1]) if verdict["scores"] is not None else None
        kind, reasons = kind_of(scores, config.gap, config.floor), tuple(verdict["reasons"])
        return Outcome(item.id, kind, item.answer, answer, scores, verdict["agree"], reasons, verdict["error"])

    return Made(range(len(both)), outcome), bias


def verdicts_of(config: CompeteConfig, out: Path, asked: Iterator[judging.Item], count: int) -> tuple[OrderBias, Spool]:
    """The judge's verdicts by the place of what was asked, put on disk as they come."""
    verdicts, begun = Spool(count), dict[str, int]()  # begun: places of those on their way

    def counted() -> Iterator[judging.Item]:
        for place, item in enumerate(asked):
            begun[item.id] = place
            yield item

    with open_judge(config, out) as (judge, bias):
        for one in followed(judge.judge(counted()), "judging", count):
            row = {"scores": one.scores, "agree": one.agree, "reasons": one.reasons, "error": one.error}
            verdicts.put(begun.pop(one.item.id), row)
    return bias, verdicts


def good_enough(config: CompeteConfig, out: Path, items: Sequence[Item], log: RejectedLog) -> Sequence[Item]:
    """The items whose teacher answer, judged alone, reaches the floor. Raises as `assess` does."""
    asked = (
        judging.Item(item.id, item.question, (item.answer,), tuple(item.images), item.reference, item.license)
        for item in items
    )
    _, verdicts = verdicts_of(config, out, asked, len(items))
    kept = array("q")
    for index, item in enumerate(items):
        verdict = verdicts.get(index)
        noted(log, "judge", index, item.id, verdict)
        if verdict["scores"] is None:
            continue
        score = verdict["scores"][0]
        if score < config.floor:
            reason = f"the teacher's answer {item.answer[:80]!r} gets {score:g}, the floor is {config.floor:g}"
            log.note("teacher", index, item.id, BadRow(reason, "teacher below the floor"))
            continue
        kept.append(index)
    return Made(kept, items.__getitem__)


def noted(log: RejectedLog, who: str, index: int, name: str, verdict: dict[str, Any]) -> None:
    """A verdict that is missing is written down and counts as a bad row."""
    if verdict["scores"] is not None:
        log.good()
    else:
        log.reject(who, index, name, BadRow(verdict["error"], "no verdict"))


@dataclass(frozen=True)
class Standing:
    """Teacher against student over many items.

    Attributes:
        teacher, student: mean scores, 1 to 10.
        wins, ties, losses: of the student.
        win_rate: share of its wins, ties counting half.
        hard_share: difficult items among those with a verdict.
    """

    scored: int
    unscored: int
    teacher: float
    student: float
    wins: int
    ties: int
    losses: int
    win_rate: float
    hard_share: float


def standing(outcomes: Sequence[Outcome]) -> Standing:
    """With NaN-free zeros where nothing was scored."""
    signs, sums, hard = Counter[int](), [0.0, 0.0], 0
    for outcome in outcomes:
        if outcome.scores is not None:
            teacher, student = outcome.scores
            signs[(student > teacher) - (student < teacher)] += 1
            sums = [sums[0] + teacher, sums[1] + student]
            hard += outcome.kind is Kind.HARD
    scored = signs.total()
    most = max(scored, 1)
    return Standing(
        scored,
        len(outcomes) - scored,
        round(sums[0] / most, 4),
        round(sums[1] / most, 4),
        signs[1],
        signs[0],
        signs[-1],
        round((signs[1] + signs[0] / 2) / most, 4),
        round(hard / most, 4),
    )


def against_labels(outcomes: Sequence[Outcome], items: Mapping[str, Item]) -> dict[str, float | None] | None:
    """How far the judge may be believed, by the items that have a label: of both sides' answers, Kendall's tau-b with
    the labels' scores, and how many get the same third of the scale by both (see `judging.calibration`). A judge of
    form words was shown the label with each answer: of it, this says whether it reads a right answer rightly.

    Returns: answers, tau (None where either gives all answers one score), agreement; None where nothing has a label.
    """

    def labelled() -> Iterator[Verdict]:
        for one in outcomes:
            if one.scores is not None and (item := items[one.id]).reference is not None:
                told = judging.Item(one.id, item.question, (one.teacher, one.student), reference=item.reference)
                yield Verdict(told, one.scores)

    known = {one.item.id: one.scores or () for one in LabelScorer().judge(verdict.item for verdict in labelled())}
    if not known:
        return None
    found = calibrate(labelled(), known, CORRECTNESS)
    tau = None if math.isnan(found.tau) else round(found.tau, 4)
    return {"answers": found.items, "tau": tau, "agreement": round(found.agreement, 4)}
