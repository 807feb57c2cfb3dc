"""`mmkd programs`: rows in; programs sampled, run and verified; records with rationales out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.answering import both
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.cards import write_card
from mmkd.synthesis.keys import require_keys
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.paid import Purse, purse_of
from mmkd.synthesis.programs.answers import as_text
from mmkd.synthesis.programs.container import container
from mmkd.synthesis.programs.grammar import gbnf
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.making.examples import Example
from mmkd.synthesis.programs.making.inventing import invent
from mmkd.synthesis.programs.making.items import Item, OneImage, items_of
from mmkd.synthesis.programs.making.judging import WordJudge
from mmkd.synthesis.programs.making.ledger import Ledger
from mmkd.synthesis.programs.making.seeing import open_backends
from mmkd.synthesis.programs.making.telling import Teller
from mmkd.synthesis.programs.making.trying import Trials, best, farthest
from mmkd.synthesis.programs.making.writing import Candidate, Prompts, Writer, distinct
from mmkd.synthesis.programs.making.yields import Yields
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.progress import followed, shown
from mmkd.synthesis.requests import Sampling, digest
from mmkd.synthesis.rows import open_rows, usable
from mmkd.whole_files import write_whole


@dataclass(frozen=True)
class Made:
    """What a run left.

    Attributes:
        yields: see `yields.Yields.to_dict`; bad: rows set aside.
    """

    file: Path
    yields: dict[str, Any]
    bad: int

    def __str__(self) -> str:
        every = self.yields["all"]
        text = f"{self.file}: {every['verified']:,} of {every['rows']:,} questions have a verified program"
        return text + (f" · {self.bad:,} rows set aside" if self.bad else "")


def make_programs(config: ProgramsConfig, round: int | None = None, purse: Purse | None = None) -> Made:
    """Write OUT/records.jsonl, one record a question, with a rationale where a program holds.

    Beside it: programs.jsonl, every program on every image with verdict, reason and trace; writer.jsonl, chats that
    teach a writer the programs that held; yield.json; rejected.jsonl, rows that cannot be used and questions without a
    verified program, with the reason. Killed at any moment, the same command goes on: no model is asked twice, no
    finished question is tried twice, and the same records come out.

    Args:
        purse: of the whole job where this is one of its rounds.

    Raises: ConfigError for models or tools that cannot be had, before a row is read where a model's key is not set;
        DataError once clearly more than 10 % of the rows are bad, or of the requests get no reply; BudgetSpent.
    """
    require_keys(config)
    out = Path(config.out)
    records = OneImage(open_rows(config.data))
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out / "verdicts.jsonl"))  # from here on the folder is ours
        (out / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier run over what it then had
        log = RejectedLog(out / "rejected.jsonl", mend_or_drop("data"))
        items = items_of(records, usable(records, log, "data"))
        purse = purse_of(out) if purse is None else purse
        backends, troubles = stack.enter_context(open_backends(config.tools, out / "tools", purse))
        command = container(config.container) if config.container else None
        executor = MontyExecutor(config.workers, command=command)
        runner = Runner(backends, Limits.of(config.limits), executor, config.tools.names)
        stack.enter_context(runner)
        prompts = Prompts(runner.tools, config.examples)
        with open_asker(config.writer, out / "asked", purse=purse) as asker:  # the writer is let go of then
            if config.invent is not None:
                items = invent(asker, config.invent, config, prompts, items, records, log)
            sampled = sample(asker, config, prompts, items)
        judge = None
        if config.judge is not None:
            judge = WordJudge(stack.enter_context(open_asker(config.judge, out / "judged", purse=purse)))

        def tried(candidates: dict[str, list[Candidate]]) -> Trials:
            trials = Trials(config, runner, records, items, candidates, ledger, troubles, judge)
            for _ in followed(trials.run(), "running programs", len(items)):
                pass
            return trials

        trials = tried(sampled.candidates)
        for number in range(config.again.times if config.again is not None else 0):
            if (more := written_again(config, prompts, items, trials.held(), number, purse)) is None:
                break
            sampled = sampled.joined(more)
            trials = tried(sampled.candidates)
        if judge is not None:
            Console(stderr=True).print(judge.asker.tally.table(judge.asker.backend.model))
        teller = Teller(None, config.boxes)
        if config.rationales is not None:
            asker = stack.enter_context(open_asker(config.rationales, out / "told", purse=purse))
            teller = Teller(asker, config.boxes)
            told(teller, trials, items)
        result = Results(config, records, trials, teller, sampled, prompts, round)
        write_jsonl(out / "records.jsonl", result.records(items, log))
        write_whole(out / "programs.jsonl", result.programs(items))
        write_jsonl(out / "writer.jsonl", result.lessons(items))
    write_whole(out / "yield.json", [json.dumps(result.yields.to_dict(), indent=2), "\n"])
    every = result.yields.to_dict()["all"]
    facts = {"questions whose program held": f"{every['verified']:,} of {every['rows']:,}"}
    if "judged" in every and config.judge is not None:
        facts["answers compared by a judge"] = ", ".join(f"{count:,} {name}" for name, count in every["judged"].items())
    write_card(out, "questions with rationales of visual programs", facts)
    Console(stderr=True).print(result.yields.table())
    return Made(out / "records.jsonl", result.yields.to_dict(), log.bad)


@dataclass(frozen=True)
class Sampled:
    """Candidates of each question, why a question has none, and who wrote them."""

    candidates: dict[str, list[Candidate]]
    missing: dict[str, str]
    model: str
    license: str | None

    def joined(self, more: Sampled) -> Sampled:
        """With the candidates of some questions that were asked again, after those that were there."""
        candidates = dict(self.candidates)
        for question, found in more.candidates.items():
            known = {one.name for one in candidates[question]}
            candidates[question] = [*candidates[question], *(one for one in found if one.name not in known)]
        return replace(self, candidates=candidates)


def written_again(
    config: ProgramsConfig,
    prompts: Prompts,
    items: Sequence[Item],
    held: dict[str, Candidate],
    number: int,
    purse: Purse | None = None,
) -> Sampled | None:
    """Candidates of the questions without a program, from prompts whose examples may be programs that `held` for other
    questions. None where every question has one, or none has."""
    left = [item for item in items if item.asked not in held]
    if config.again is None or not held or not left:
        return None
    texts = len({item.asked for item in left})
    Console(stderr=True).print(f"{len(held):,} questions have a program, {texts:,} have none and are asked again")
    known = [Example(question, one.program.source) for question, one in held.items() if one.program is not None]
    drawn = random.Random(f"{config.seed}/again/{number}").sample(known, min(config.again.most, len(known)))
    with open_asker(config.writer, Path(config.out) / "asked", purse=purse) as asker:
        return sample(asker, config, Prompts(prompts.tools, config.again.examples, drawn), left)


def sample(asker: Asker, config: ProgramsConfig, prompts: Prompts, items: Iterable[Item]) -> Sampled:
    """Ask the writer for what its store does not hold, and read the candidates."""
    several = config.invent is not None  # programs have to agree where no answer is known
    questions = distinct([(item.asked, several or item.label is not None) for item in items])
    drawn = Sampling(
        **config.sampling.model_dump(exclude={"constrained"}),
        grammar=gbnf(prompts.tools) if config.sampling.constrained else "",
    )
    writer = Writer(asker, prompts, drawn, config.samples)
    answers = asker.answer(writer.requests(questions))
    for _ in shown(answers, asker.tally, "writing programs", writer.count(questions)):
        pass
    Console(stderr=True).print(asker.tally.table(asker.backend.model))
    read = {question: writer.candidates(question, labelled) for question, labelled in questions.items()}
    candidates = {question: found for question, (found, _) in read.items()}
    missing = {question: why for question, (_, why) in read.items()}
    return Sampled(candidates, missing, asker.backend.model, asker.backend.license)


def told(teller: Teller, trials: Trials, items: Iterable[Item]) -> None:
    """Ask who words rationales for what its store does not hold."""
    assert teller.asker is not None
    verified = ((item, pair[1]) for item in items if (pair := best(trials.outcomes(item))) is not None)
    for _ in shown(teller.asker.answer(teller.requests(verified)), teller.asker.tally, "wording rationales"):
        pass


class Results:
    """What is written of trials that are over."""

    def __init__(
        self,
        config: ProgramsConfig,
        sources: OneImage,
        trials: Trials,
        teller: Teller,
        sampled: Sampled,
        prompts: Prompts,
        round: int | None,
    ):
        self.round = round
        self.config, self.sources, self.trials, self.teller = config, sources, trials, teller
        self.sampled, self.prompts, self.yields = sampled, prompts, Yields()

    def records(self, items: Iterable[Item], log: RejectedLog) -> Iterator[Record]:
        """One for each question that has an answer: its label, else what its program answers."""
        for place, item in enumerate(items):
            outcomes = self.trials.outcomes(item)
            self.yields.add(item, outcomes)
            chosen = best(outcomes)
            if chosen is None:
                log.note("questions", place, item.id, self._why(item, outcomes))
            if chosen is not None or item.label is not None:
                yield self._record(item, chosen)

    def programs(self, items: Iterable[Item]) -> Iterator[str]:
        """Lines of programs.jsonl."""
        for item in items:
            for one, outcome in self.trials.outcomes(item):
                source = one.program.source if one.program else one.source
                row = {
                    "id": item.id,
                    "task": item.task,
                    "question": item.question,
                    "label": item.label,
                    "program": source,
                    "key": one.key,
                    "seeds": list(one.seeds),
                    "answer": outcome.answer,
                    "verdict": str(outcome.verdict),
                    "reason": str(outcome.reason) if outcome.reason else None,
                    "message": outcome.message,
                    **({} if outcome.judged is None else {"judged": outcome.judged}),
                    "trace": _trace(outcome),
                }
                yield json.dumps(row, ensure_ascii=False) + "\n"

    def lessons(self, items: Iterable[Item]) -> Iterator[Record]:
        """Chats without images from which a writer learns: each question's prompt and a program that held, one chat for
        each such program. A writer that is taught one alone gives no second one that agrees."""
        held: dict[tuple[str, str], Candidate] = {}
        tasks: dict[str, str] = {}
        for item in items:
            tasks[item.asked] = item.task
            for one, outcome in self.trials.outcomes(item):
                if outcome.verdict is Verdict.VERIFIED:
                    held.setdefault((item.asked, one.key), one)
        for (question, key), one in held.items():
            assert one.program is not None  # verified
            turns = [*self.prompts.turns(question), Turn("assistant", one.program.source)]
            origin = replace(self._origin(one), parent=digest(question))
            yield Record(digest([question, key]), turns, [], tasks[question], "programs", origin)

    def _origin(self, one: Candidate) -> Provenance:
        return Provenance(
            engine="programs",
            round=self.round,
            model=self.sampled.model,
            prompt_hash=one.prompt,
            seed=one.seeds[0],
            license=self.sampled.license,
            verdict=str(Verdict.VERIFIED),
        )

    def _why(self, item: Item, outcomes: list[tuple[Candidate, Outcome]]) -> BadRow:
        last = farthest(outcomes)
        if last is None:
            return BadRow(self.sampled.missing[item.asked] or "no program was sampled.", "no program")
        return BadRow(f"{last.verdict}, {last.reason}: {last.message}", str(last.reason))

    def _record(self, item: Item, chosen: tuple[Candidate, Outcome] | None) -> Record:
        source = self.sources[item.row]
        provenance = Provenance(
            parent=source.id, engine="programs", round=self.round, license=source.provenance.license
        )
        answer, rationale = item.label or "", None
        if chosen is not None:
            one, outcome = chosen
            answer, rationale = item.label or as_text(outcome.answer), self.teller.text(item, outcome)
            assert one.program is not None  # verified
            provenance = replace(
                self._origin(one),
                parent=source.id,
                license=both(source.provenance.license, self.sampled.license),
                program=one.program.source,
                trace=_trace(outcome),
            )
            if outcome.judged and self.trials.judge is not None:
                words = f"{Verdict.VERIFIED}, wording judged by {self.trials.judge.asker.backend.model}"
                provenance = replace(provenance, verdict=words)
        turns = [
            Turn("user", item.question, choices=list(item.choices) or None),
            Turn("assistant", answer, rationale, answers=list(item.answers) or None),
        ]
        return Record(item.id, turns, source.images, item.task, source.source, provenance)


def _trace(outcome: Outcome) -> list[dict[str, Any]]:
    """Events without how long they took, which differs from run to run."""
    return [{key: value for key, value in one.to_dict().items() if key != "seconds"} for one in outcome.events]
