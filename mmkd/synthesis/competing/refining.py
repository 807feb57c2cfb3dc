"""Failed answers that a model mends, for pairs that differ only in what matters (SPaR, arXiv 2412.11605)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mmkd.config.compete_schema import CompeteConfig, RefineSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.competing.asking import open_role
from mmkd.synthesis.competing.assessing import Kind, Outcome, open_judge
from mmkd.synthesis.competing.filters import rouge_l, words
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.judging import judge as judging
from mmkd.synthesis.judging.judge import Verdict
from mmkd.synthesis.progress import followed, shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Answer, Request, Sampling


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


@dataclass
class Refining:
    """What a round's refinements came to. `gone`: attempts that did not become a pair, by reason."""

    found: dict[str, Refined]
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
    """Mended answers to the difficult items of a round, by item.

    An answer is accepted that the judge gives `floor` and more, and `gap` more than the student's, in both orders. One
    that is not is mended anew, from the student's own words and by another seed, up to `section.tries` times. What the
    student left empty has nothing to be mended.

    Args:
        teacher: mends where the section names nobody.

    Raises: what the model and the judge raise.
    """
    left = [one for one in outcomes if one.kind is Kind.HARD and one.agree and one.student.strip()]
    result = Refining({}, len(left), Counter())
    for attempt in range(1, section.tries + 1):
        if not left:
            break

        def gone(place: int, name: str, kind: str, reason: str, attempt: int = attempt) -> None:
            result.gone[kind] += 1
            log.note(f"refinement {attempt}", place, name, BadRow(reason, kind))

        answers = _mended(config, section, out, round, attempt, left, items, teacher)
        drafts: dict[str, str] = {}
        for place, one in enumerate(left):
            answer = answers[one.id]
            said = answer.value.answer.strip() if isinstance(answer.value, Mended) else ""
            if not said:
                gone(place, one.id, "no answer", f"{answer.kind}: {answer.reason}")
            elif said == one.student.strip():
                gone(place, one.id, "nothing mended", "the faulty answer again")
            else:
                drafts[one.id] = said
        verdicts = _judged(config, out, left, items, drafts)
        for place, one in enumerate(left):
            if one.id not in drafts:
                continue
            if reason := _refused(config, verdicts[one.id]):
                gone(place, one.id, *reason)
            else:
                scores: Any = verdicts[one.id].scores
                kept = rouge_l(words(drafts[one.id]), words(one.student))
                result.found[one.id] = Refined(one.id, drafts[one.id], one.student, scores, attempt, kept)
        left = [one for one in left if one.id not in result.found]
    return result


def _mended(
    config: CompeteConfig,
    section: RefineSection,
    out: Path,
    round: int,
    attempt: int,
    outcomes: Sequence[Outcome],
    items: Mapping[str, Item],
    teacher: ModelSection,
) -> dict[str, Answer]:
    template = prompt("compete_refine")

    def request(one: Outcome) -> Request:
        item = items[one.id]
        turns = template.render(
            question=item.question, answer=one.student, better=one.teacher, reason=next(iter(one.reasons), "")
        )
        seed = random.Random(f"{config.seed}/refine/{round}/{one.id}/{attempt}").randrange(2**31)
        sampling = Sampling(section.temperature, 1.0, section.max_tokens, seed)
        return Request(one.id, turns, item.images, sampling, Mended, prompt=str(template), license=item.license)

    with open_role(section.model or teacher, out / "asked", "refine", config.reasks) as asker:
        asked = asker.answer(request(one) for one in outcomes)
        return {answer.request.id: answer for answer in shown(asked, asker.tally, "mended answers", len(outcomes))}


def _judged(
    config: CompeteConfig,
    out: Path,
    outcomes: Sequence[Outcome],
    items: Mapping[str, Item],
    drafts: Mapping[str, str],
) -> dict[str, Verdict]:
    pairs = [(items[one.id], one) for one in outcomes if one.id in drafts]
    asked = (
        judging.Item(
            item.id, item.question, (drafts[item.id], one.student), tuple(item.images), item.reference, item.license
        )
        for item, one in pairs
    )
    with open_judge(config, out) as (judge, _):
        return {verdict.item.id: verdict for verdict in followed(judge.judge(asked), "judging", len(pairs))}


def _refused(config: CompeteConfig, verdict: Verdict) -> tuple[str, str] | None:
    """Kind and reason why a mended answer makes no pair, or None."""
    if verdict.scores is None:
        return "no verdict", verdict.error
    mended, failed = verdict.scores
    if mended < config.floor:
        return "still faulty", f"it gets {mended:g}, the floor is {config.floor:g}"
    if mended - failed < config.gap or not verdict.agree:
        return (
            "not clearly better",
            f"{mended:g} against {failed:g}{'' if verdict.agree else ', and the orders differ'}",
        )
    return None
