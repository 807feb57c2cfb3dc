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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console

from mmkd.config.judge_schema import JudgeConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.judging.calibration import Calibration, calibrate
from mmkd.synthesis.judging.graded import Graded, WrongAnswers, graded, held_out
from mmkd.synthesis.judging.grades import HIGHEST, GradeJudge
from mmkd.synthesis.judging.judge import Judge
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
    answers = [one for one in _graded(config, log) if not held_out(one, config.hold_out)]
    scores = _taught(config, answers, log)
    kinds = dict.fromkeys(("right", "wrong", "model"), 0)

    def records() -> Iterator[Record]:
        for one in answers:
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
    return f"{out / 'records.jsonl'}: {count:,} graded answers ({told})"


@dataclass(frozen=True)
class Trust:
    """How far a judge can be trusted, on answers that it did not learn from.

    Attributes:
        pairs, preferred: a right and a wrong answer to one question, and how often the right one has the higher score
            (half for a draw).
    """

    calibration: Calibration
    pairs: int
    preferred: float


def judge_calibration(config: JudgeConfig) -> Trust:
    """The judge's scores against the labels of the held-out answers; also in OUT/calibration.json, and printed.

    Raises: ConfigError without a model; DataError where no answer is held out or none gets a score.
    """
    if config.model is None:
        raise ConfigError("config: model is missing; calibrate needs the judge, e.g. model.vlm.model=runs/judge/model.")
    out = Path(config.out)
    held = [one for one in _graded(config, _fresh_log(out)) if held_out(one, config.hold_out)]
    held = _drawn(held, config)
    if not held:
        raise DataError(f"hold_out {config.hold_out} holds out no picture of these rows; raise it.")
    with open_asker(config.model, out / "judged") as asker:
        judge = GradeJudge(asker, expected=config.expected)
        judged = followed(judge.judge(one.item for one in held), "grading", len(held))
        verdicts = {verdict.item.id: verdict for verdict in judged}
    calibration = calibrate(verdicts.values(), {one.item.id: (one.grade,) for one in held}, CORRECTNESS)
    scores = {name: verdict.scores[0] for name, verdict in verdicts.items() if verdict.scores is not None}
    trust = Trust(calibration, *_preferred(held, scores))
    write_whole(out / "calibration.json", [json.dumps(_plain(trust), indent=2) + "\n"])
    console = Console(stderr=True)
    console.print(calibration.shown())
    console.print(f"of {trust.pairs:,} pairs the right answer is preferred in {trust.preferred:.1%}")
    return trust


def _fresh_log(out: Path) -> RejectedLog:
    out.mkdir(parents=True, exist_ok=True)
    (out / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier run
    return RejectedLog(out / "rejected.jsonl")


def _graded(config: JudgeConfig, log: RejectedLog) -> Iterator[Graded]:
    records = open_rows(config.data)
    good = usable(records, log, "data")
    said = [{record.id: record for record in jsonl(path)} for path in config.answers]
    wrong = WrongAnswers(records[index] for index in good)
    return graded((records[index] for index in good), wrong, config.wrong, said, CORRECTNESS, config.seed)


def _taught(config: JudgeConfig, answers: list[Graded], log: RejectedLog) -> dict[str, float]:
    """The teacher's scores of what models said, by item; those without one are written to the log."""
    asked = [one.item for one in answers if one.kind == "model"]
    if config.teacher is None or not asked:
        return {}
    found: dict[str, float] = {}
    with open_asker(config.teacher.model, Path(config.out) / "taught") as asker:
        judge = Judge(asker, sampling=Sampling(max_tokens=config.teacher.max_tokens))
        for index, verdict in enumerate(followed(judge.judge(asked), "grading", len(asked))):
            if verdict.scores is None:
                log.note("teacher", index, verdict.item.id, BadRow(verdict.error, "no verdict"))
            else:
                found[verdict.item.id] = verdict.scores[0]
    return found


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


def _drawn(held: list[Graded], config: JudgeConfig) -> list[Graded]:
    """At most `most` answers, whole questions at a time."""
    if config.most is None or len(held) <= config.most:
        return held
    by_question: dict[str, list[Graded]] = {}
    for one in held:
        by_question.setdefault(one.question, []).append(one)
    questions = random.Random(config.seed).sample(list(by_question), len(by_question))
    return list(chain.from_iterable(by_question[name] for name in questions))[: config.most]


def _preferred(held: list[Graded], scores: dict[str, float]) -> tuple[int, float]:
    right = {one.question: scores[one.item.id] for one in held if one.kind == "right" and one.item.id in scores}
    wins = [
        (right[one.question] > scores[one.item.id]) + (right[one.question] == scores[one.item.id]) / 2
        for one in held
        if one.kind == "wrong" and one.item.id in scores and one.question in right
    ]
    return len(wins), sum(wins) / len(wins) if wins else math.nan


def _plain(trust: Trust) -> dict:
    row = asdict(trust.calibration) | {"pairs": trust.pairs, "preferred": trust.preferred}
    row["table"] = {f"{known}/{given}": count for (known, given), count in trust.calibration.table.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
