"""`mmkd answer`: a served (or any) teacher, in the sense of answers: records with its words in the place of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mmkd.config.synthesis_schema import AnswerConfig
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.asking import Asker, answer_of
from mmkd.synthesis.cards import write_card
from mmkd.synthesis.keys import require_keys
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import shown
from mmkd.synthesis.requests import Answer, Request, Sampling, Status, digest
from mmkd.synthesis.rows import open_rows, usable


@dataclass(frozen=True)
class Outcome:
    """What became of the rows: whole, shortened to the questions that were answered, or set aside."""

    file: Path
    whole: int
    shortened: int
    bad: int

    def __str__(self) -> str:
        text = f"{self.file}: {self.whole:,} records whole, {self.shortened:,} shortened, {self.bad:,} set aside"
        return text + (f" · reasons in {self.file.parent / 'rejected.jsonl'}" if self.shortened or self.bad else "")


def answer_records(config: AnswerConfig) -> Outcome:
    """Answer every question of the config's records and write OUT/records.jsonl.

    A question is asked after the questions before it and the model's own answers to them. All pictures go with each.
    Killed, the same command goes on where it was; no answer that came is asked for again.

    Raises: ConfigError for a model that cannot be asked or does not read pictures; BudgetSpent; DataError.
    """
    require_keys(config)
    records, out = open_rows(config.data), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier run over what it then had
    log = RejectedLog(out / "rejected.jsonl", mend_or_drop("data"))
    good = usable(records, log, "data")
    with open_asker(config.model, out / "answers", config.reasks) as asker:
        relabel = Relabel(asker, Sampling(**config.sampling.model_dump()), config.may_be_cut, config.system)
        ask_all(relabel, records, good)
        counts = {"whole": 0, "shortened": 0, "bad": 0}
        rows = relabel.records(records, good, log, counts)
        write_jsonl(out / "records.jsonl", rows)
        model = asker.backend.model
    asked = "with" if config.system is None else "with another system turn, and"
    facts = {"model": model, "sampling": f"{asked} {config.sampling.model_dump(mode='json')}"}
    write_card(out, "the questions of records, answered by a model", facts)
    return Outcome(out / "records.jsonl", counts["whole"], counts["shortened"], counts["bad"] + log.bad)


def ask_all(relabel: Relabel, records: Sequence[Record], good: Sequence[int]) -> None:
    """Ask every question of the `good` records that the store has no answer to, the first ones first."""
    asker = relabel.asker
    deepest = max(len(questions(records[index])) for index in good)
    for depth in range(deepest):
        asked = relabel.requests(records, good, depth)
        total = sum(len(questions(records[index])) > depth for index in good)
        for _ in shown(asker.answer(asked), asker.tally, f"question {depth + 1} of {deepest}", total):
            pass  # they are read from the store
    Console(stderr=True).print(asker.tally.table(asker.backend.model))


class Relabel:
    """The questions of records as requests, and the kept answers as records.

    Args:
        system: a system turn in the place of each record's own.
    """

    def __init__(self, asker: Asker, sampling: Sampling, may_be_cut: bool = False, system: str | None = None):
        self.asker, self.sampling, self.may_be_cut, self.system = asker, sampling, may_be_cut, system

    def requests(self, records: Sequence[Record], good: Sequence[int], depth: int) -> Iterator[Request]:
        """Question number `depth` of each record whose questions before it are answered."""
        for index in good:
            record = records[index]
            asked = questions(record)
            if len(asked) > depth:
                said, _ = self._said(record, depth)
                if len(said) == depth:
                    yield self._request(record, asked, said)

    def first(self, records: Sequence[Record], good: Sequence[int]) -> Request | None:
        """The first question of all."""
        return next(self.requests(records, good, 0), None)

    def records(
        self, records: Sequence[Record], good: Sequence[int], log: RejectedLog, counts: dict[str, int]
    ) -> Iterator[Record]:
        """Records with the kept answers, shortened to the questions before the first that has none, or set aside."""
        for index in good:
            record = records[index]
            asked = questions(record)
            said, missing = self._said(record, len(asked))
            if missing:
                log.note("data", index, record.id, missing)
            counts["whole" if not missing else "shortened" if said else "bad"] += 1
            if said:
                yield self.relabelled(record, asked, said)

    def _said(self, record: Record, depth: int) -> tuple[list[str], BadRow | None]:
        found, missing, _ = self.answers(record, depth)
        return [answer.text.strip() for answer in found], missing

    def answers(self, record: Record, depth: int) -> tuple[list[Answer], BadRow | None, bool]:
        """The kept answers to the first `depth` questions, why there are no more, and whether another run may get
        them, because nothing came back."""
        found: list[Answer] = []
        said: list[str] = []
        asked = questions(record)
        for place in range(depth):
            request = self._request(record, asked, said)
            entry = self.asker.store.last(self.asker.key(request.content()))
            if entry is None or entry.status is Status.UNUSABLE:  # the run was stopped between two tries
                return found, BadRow(f"question {place + 1} got no reply; run again.", "no reply"), True
            answer = answer_of(entry, request)
            if not answer.done:
                lost = entry.status is Status.UNANSWERED
                return found, BadRow(f"question {place + 1}: {answer.reason}", answer.kind), lost
            found.append(answer)
            said.append(answer.text.strip())
        return found, None if asked else BadRow("it asks no question.", "no question"), False

    def left(self, record: Record) -> Iterator[Request]:
        """The questions that a run may still ask. In the place of an answer that is not there yet stands an empty one.
        After a question that was rejected no more are asked."""
        asked = questions(record)
        found, _, _ = self.answers(record, len(asked))
        said = [answer.text.strip() for answer in found]
        while len(said) < len(asked):
            request = self._request(record, asked, said)
            if len(said) == len(found) and self.asker.store.final(self.asker.key(request.content())):
                return
            yield request
            said.append("")

    def _request(self, record: Record, asked: Sequence[Turn], said: Sequence[str]) -> Request:
        turns = (*self._system(record), *_interleaved(asked[: len(said) + 1], said))
        name = f"{record.source}/{record.id}/{len(said)}"
        license = record.provenance.license
        return Request(name, turns, tuple(record.images), self.sampling, may_be_cut=self.may_be_cut, license=license)

    def _system(self, record: Record) -> tuple[Turn, ...]:
        if self.system is not None:
            return (Turn("system", self.system),)
        return tuple(turn for turn in record.turns[:1] if turn.role == "system")

    def relabelled(self, record: Record, asked: Sequence[Turn], said: Sequence[str]) -> Record:
        """The record with what was said to the first of what it asks, and nothing more."""
        turns = [*self._system(record), *_interleaved(asked[: len(said)], said)]
        backend = self.asker.backend
        provenance = Provenance(
            parent=record.id,
            engine="answer",
            model=backend.model,
            prompt_hash=digest([turn.text for turn in turns if turn.role != "assistant"]),
            seed=self.sampling.seed,
            license=both(record.provenance.license, backend.license),
        )
        return replace(record, turns=turns, provenance=provenance)


def questions(record: Record) -> list[Turn]:
    return [turn for turn in record.turns if turn.role == "user"]


def _interleaved(asked: Sequence[Turn], said: Sequence[str]) -> Iterator[Turn]:
    for place, question in enumerate(asked):
        yield question
        if place < len(said):
            yield Turn("assistant", said[place])


def both(one: str | None, other: str | None) -> str | None:
    """The SPDX expression of what is under both licences."""
    names = list(dict.fromkeys(name for name in (one, other) if name))
    return " AND ".join(names) or None
