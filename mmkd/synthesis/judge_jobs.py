"""`mmkd judge`: training records of a local judge, after Self-J, and its calibration.

Self-J distils a judge that sees the right answer into the same model without it. Here the judge's target for an answer
is its label or, for what a model said, the mean of its label and the score of a judge that is shown the right answer
(Self-J: of the score and of the likeness of both texts' embeddings); the student learns the digit by an ordinary
`mmkd train` run. Self-J's second term, the KL between both views' grades, is not built.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from rich.console import Console

from mmkd.config.judge_schema import JudgeConfig
from mmkd.data.on_disk import ById
from mmkd.data.record_files import jsonl
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.cards import write_card
from mmkd.synthesis.judging.calibration import Calibration, calibrate
from mmkd.synthesis.judging.graded import Graded, WrongAnswers, graded, held_out
from mmkd.synthesis.judging.grades import HIGHEST, GradeJudge
from mmkd.synthesis.judging.judge import Item, Judge, OrderBias, Verdict
from mmkd.synthesis.judging.scales import CORRECTNESS
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import followed
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Sampling, digest
from mmkd.synthesis.rows import open_rows, usable
from mmkd.whole_files import write_whole


def judge_records(config: JudgeConfig) -> str:
    """Write OUT/records.jsonl: each graded answer as a chat whose reply is the digit. Returns what to print.

    Raises: ConfigError for a teacher that cannot be asked; DataError where nothing can be used.
    """
    out = Path(config.out)
    log = _fresh_log(out)
    rows = _Rows(config, log)
    scores, graders = _taught(config, rows, log)
    kinds = dict.fromkeys(("right", "wrong", "model"), 0)

    def records() -> Iterator[Record]:
        for one in rows.answers(held=False):
            if one.kind == "model" and config.teacher is not None:
                if one.item.id not in scores:
                    continue
                yield _record(one, (one.grade + scores[one.item.id]) / 2, config)
            else:
                yield _record(one, one.grade, config)
            kinds[one.kind] += 1

    count = write_jsonl(out / "records.jsonl", records())
    if not count:
        raise DataError(f"no answer of {out} is left to learn from; the reasons are in {log.path}.")
    told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    facts = {"answers": told, "graded by": graders, "kept for calibrate": f"{config.hold_out:g} of the pictures"}
    write_card(out, "answers of known quality, each with its grade, for a judge to learn from", facts)
    return f"{out / 'records.jsonl'}: {count:,} graded answers ({told})"


@dataclass(frozen=True)
class Trust:
    """How far a judge can be trusted, on answers that it did not learn from.

    Attributes:
        pairs, preferred: a right and a wrong answer to one question, and how often the right one has the higher score
            (half for a draw).
        bias: of form words, what the order of two answers does.
    """

    calibration: Calibration
    pairs: int
    preferred: float
    bias: OrderBias | None = None


def judge_calibration(config: JudgeConfig) -> Trust:
    """The judge's scores against the labels of the held-out answers; also in OUT/calibration.json, and printed.

    Raises: ConfigError without a model; DataError where no answer is held out or none gets a score.
    """
    if config.model is None:
        raise ConfigError("config: model is missing; calibrate needs the judge, e.g. model.vlm.model=runs/judge/model.")
    out = Path(config.out)
    rows = _Rows(config, _fresh_log(out))
    asked = _Asked(rows, config)
    if not asked.known:
        raise DataError(f"hold_out {config.hold_out} holds out nothing of these rows to grade; raise it, or wrong.")
    console = Console(stderr=True)
    with open_asker(config.model, out / "judged") as asker:
        if config.form == "digit":
            judge = GradeJudge(asker, expected=config.expected)
        else:
            judge = Judge(asker, sampling=Sampling(max_tokens=config.max_tokens))
        judged = followed(judge.judge(asked.items()), "grading", len(asked.known))
        calibration = calibrate(asked.noted(judged), asked.known, CORRECTNESS)
        console.print(asker.tally.table(asker.backend.model))
    trust = Trust(calibration, *asked.preferred(), judge.bias if config.form == "words" else None)
    write_whole(out / "calibration.json", [json.dumps(_plain(trust), indent=2) + "\n"])
    console.print(calibration.shown())
    console.print(f"of {trust.pairs:,} pairs the right answer is preferred in {trust.preferred:.1%}")
    if trust.bias is not None:
        console.print(str(trust.bias))
    return trust


class _Asked:
    """What calibrate has graded: with form digit each answer alone, with words a right answer beside each other one, in
    both orders. No judge is shown the right answer as such: it is of use where nobody knows it.

    Attributes:
        known: the labels' grades of what is asked, by its id. Memory holds these and the scores, no picture.
    """

    def __init__(self, rows: _Rows, config: JudgeConfig):
        self.rows, self.pairs = rows, config.form == "words"
        self._chosen = _drawn(rows, config)
        self.known: dict[str, tuple[float, ...]] = {}
        self._of: dict[str, tuple[str, str]] = {}  # question and kind of each
        self._scores: dict[str, tuple[float, ...]] = {}
        for item, grades, question, kind in self._all():
            self.known[item.id], self._of[item.id] = grades, (question, kind)

    def items(self) -> Iterator[Item]:
        return (item for item, *_ in self._all())

    def _all(self) -> Iterator[tuple[Item, tuple[float, ...], str, str]]:
        right: Graded | None = None
        for one in self.rows.answers(held=True):
            if one.kind == "right":
                right = one
            if self._chosen is not None and one.item.id not in self._chosen:
                continue
            item = replace(one.item, reference=None)
            if not self.pairs:
                yield item, (one.grade,), one.question, one.kind
            elif one.kind != "right" and right is not None:
                answers = (right.item.answers[0], one.item.answers[0])
                yield replace(item, answers=answers), (right.grade, one.grade), one.question, one.kind

    def noted(self, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
        for verdict in verdicts:
            if verdict.scores is not None:
                self._scores[verdict.item.id] = verdict.scores
            yield verdict

    def preferred(self) -> tuple[int, float]:
        """(pairs of a right and a wrong answer, share of them in which the right one has the higher score)."""
        right = {self._of[name][0]: one[0] for name, one in self._scores.items() if self._of[name][1] == "right"}
        wins = []
        for name, scores in self._scores.items():
            question, kind = self._of[name]
            if kind == "wrong" and (self.pairs or question in right):
                other = scores[0] if self.pairs else right[question]
                wins.append((other > scores[-1]) + (other == scores[-1]) / 2)
        return len(wins), sum(wins) / len(wins) if wins else math.nan


def _fresh_log(out: Path) -> RejectedLog:
    out.mkdir(parents=True, exist_ok=True)
    (out / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier run
    return RejectedLog(out / "rejected.jsonl", mend_or_drop("data"))


class _Rows:
    """The graded answers of the config's rows, made anew each time they are gone through: no picture is kept."""

    def __init__(self, config: JudgeConfig, log: RejectedLog):
        self.config, self.records = config, open_rows(config.data)
        self.good = usable(self.records, log, "data")
        self.said = [ById(jsonl(path)) for path in config.answers]
        for path, by_id in zip(config.answers, self.said, strict=True):
            if not any(self.records[index].id in by_id for index in self.good):
                raise DataError(
                    f"answers: {path} has no record of the ids that data has, so nothing in it would be graded. Give "
                    "mmkd answer the same data, turns included, which join records under other ids."
                )
        self.wrong = WrongAnswers(self.records[index] for index in self.good)

    def answers(self, held: bool) -> Iterator[Graded]:
        """Those that are kept for calibrate, or the others."""
        records = (self.records[index] for index in self.good)
        found = graded(records, self.wrong, self.config.wrong, self.said, CORRECTNESS, self.config.seed)
        return (one for one in found if held_out(one, self.config.hold_out) == held)


def _taught(config: JudgeConfig, rows: _Rows, log: RejectedLog) -> tuple[dict[str, float], str]:
    """The teacher's scores of what models said, by item, and who graded; those without one are written to the log."""
    found: dict[str, float] = {}
    total = sum(one.kind == "model" for one in rows.answers(held=False)) if config.teacher is not None else 0
    if config.teacher is None or not total:
        return found, "labels"
    asked = (one.item for one in rows.answers(held=False) if one.kind == "model")
    with open_asker(config.teacher.model, Path(config.out) / "taught") as asker:
        judge = Judge(asker, sampling=Sampling(max_tokens=config.teacher.max_tokens))
        for index, verdict in enumerate(followed(judge.judge(asked), "grading", total)):
            if verdict.scores is None:
                log.note("teacher", index, verdict.item.id, BadRow(verdict.error, "no verdict"))
            else:
                found[verdict.item.id] = verdict.scores[0]
        Console(stderr=True).print(asker.tally.table(asker.backend.model))
        return found, f"labels; of what models said also {asker.backend.model}, both averaged"


def _record(one: Graded, grade: float, config: JudgeConfig) -> Record:
    """A chat as GradeJudge asks it, and the digit."""
    span = CORRECTNESS.high - CORRECTNESS.low
    number = math.floor(HIGHEST * (grade - CORRECTNESS.low) / span + 0.5)
    asked = prompt("judge_grade").render(question=one.item.question, answer=one.item.answers[0])
    provenance = Provenance(
        parent=one.item.id,
        engine="judge",
        prompt_hash=digest([turn.text for turn in asked]),
        seed=config.seed,
        license=one.item.license,
    )
    turns = [*asked, Turn("assistant", str(number))]
    return Record(one.item.id, turns, list(one.item.images), f"grade {one.kind}", "judge", provenance)


def _drawn(rows: _Rows, config: JudgeConfig) -> set[str] | None:
    """The ids of at most `most` held-out answers, whole questions at a time; None for all."""
    if config.most is None:
        return None
    by_question: dict[str, list[str]] = {}
    for one in rows.answers(held=True):
        by_question.setdefault(one.question, []).append(one.item.id)
    questions = random.Random(config.seed).sample(list(by_question), len(by_question))
    return set(list(chain.from_iterable(by_question[name] for name in questions))[: config.most])


def _plain(trust: Trust) -> dict:
    row = asdict(trust.calibration) | {"pairs": trust.pairs, "preferred": trust.preferred}
    if trust.bias is not None:
        row |= {"compared": trust.bias.compared, "disagreed": trust.bias.disagreed, "order": str(trust.bias)}
    row["table"] = {f"{known}/{given}": count for (known, given), count in trust.calibration.table.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
