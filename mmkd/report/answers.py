"""Questions with the answers of teacher and student side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmkd.report.folder import json_lines
from mmkd.report.run_folder import Scored, reading_name

Key = tuple[str, str]  # task, document

SPREAD = 6  # questions taken evenly from the suite
MISSED = 6  # questions that the student's smallest reading gets wrong, beside those
VERDICTS = {1: True, 0: False}  # a measure between (some of the humans agree) says neither
TEACHER = "teacher"


@dataclass
class Said:
    """One answer, and who gave it: readings that answer alike stand together.

    Attributes:
        right: as the suite scored it; None where that is neither right nor wrong.
    """

    by: str
    text: str
    right: bool | None = None


@dataclass
class Asked:
    """A question of the suite.

    Attributes:
        doc: the suite's own fields, by which its picture is found.
    """

    question: str
    truth: str
    doc: dict[str, Any]
    answers: list[Said] = field(default_factory=list)


def sample_answers(scored: Sequence[Scored], teacher: Scored | None) -> tuple[list[Asked], list[Asked]]:
    """Questions of one suite: some spread evenly over it, and some that the student misses.

    Args:
        scored: the student's readings of that suite; teacher: the teacher's.

    Raises: OSError where a samples file cannot be read.
    """
    with_samples = [one for one in scored if one.reading != "blind" and one.samples.is_file()]
    if not with_samples:
        return [], []
    first = with_samples[0]
    keys = [_key(row) for row in json_lines(first.samples)]
    even = keys[:: max(1, len(keys) // SPREAD)][:SPREAD]
    missed = _missed(first, set(even))
    chosen = {*even, *missed}
    rows = {reading_name(one.reading): _picked(one, chosen) for one in with_samples}
    if teacher is not None and teacher.samples.is_file():
        rows = {TEACHER: _picked(teacher, chosen)} | rows
    base = rows[reading_name(first.reading)]
    return [_asked(key, base[key], rows) for key in even], [_asked(key, base[key], rows) for key in missed]


def _missed(one: Scored, but: set[Key]) -> list[Key]:
    """The first questions answered wrongly, one a picture."""
    found: dict[str, Key] = {}
    for row in json_lines(one.samples):
        if _key(row) not in but and _right(row, one.scores) is False:
            found.setdefault(_subject(row.get("doc")), _key(row))
            if len(found) == MISSED:
                break
    return list(found.values())


def _subject(doc: Any) -> str:
    """What a question is about: its fields without those of the question."""
    fields = doc if isinstance(doc, dict) else {}
    return repr(
        [fields[name] for name in sorted(fields, key=str) if name not in ("question", "answer", "type", "unseen")]
    )


def _right(row: dict[str, Any], scores: dict[str, float]) -> bool | None:
    """What the suite's own measure, acc if it has one, says of an answer.

    Args:
        scores: of the suite: METRIC, or TASK/METRIC where it has several tasks. Those above 1 are grades or sums.
    """
    names = [name.removeprefix(f"{row.get('task')}/") for name, score in scores.items() if 0 <= score <= 1]
    for name in sorted(names, key=lambda name: name != "acc"):
        value = row.get(name)
        value = value.get("score") if isinstance(value, dict) else value  # as tasks like POPE log it
        if isinstance(value, int | float):
            return VERDICTS.get(value)
    return None


def _picked(one: Scored, keys: set[Key]) -> dict[Key, dict[str, Any]]:
    """The rows of these questions, each with the suite's verdict as `right`."""
    rows = (row for row in json_lines(one.samples) if _key(row) in keys)
    return {_key(row): row | {"right": _right(row, one.scores)} for row in rows}


def _key(row: dict[str, Any]) -> Key:
    return str(row.get("task")), str(row.get("doc_id"))


def _text(row: dict[str, Any]) -> str:
    answers = row.get("filtered_resps")
    answer = answers[0] if isinstance(answers, list) and answers else answers
    return str(answer if answer is not None else "")


def _asked(key: Key, base: dict[str, Any], rows: dict[str, dict[Key, dict[str, Any]]]) -> Asked:
    doc = base["doc"] if isinstance(base.get("doc"), dict) else {}
    truth = str(base.get("target", ""))
    asked = Asked(str(doc.get("question", f"{key[0]} {key[1]}")), truth, doc)
    together: dict[tuple[bool, str, bool | None], list[str]] = {}
    for name, found in rows.items():
        if key in found:
            together.setdefault((name == TEACHER, _text(found[key]), found[key]["right"]), []).append(name)
    for (_, text, right), names in together.items():
        asked.answers.append(Said(_joined(names), text, right))
    return asked


def _joined(names: list[str]) -> str:
    """k = 1, k = 2, full -> k = 1, 2, full."""
    return ", ".join([names[0], *(name.removeprefix("k = ") for name in names[1:])])
