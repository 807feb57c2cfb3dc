"""`mmkd evolve`: rounds over all seeds, then the records, the reasons and the card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.evolving.items import Version
from mmkd.synthesis.evolving.journal import CHUNK, Journal
from mmkd.synthesis.evolving.opening import SETTINGS, Parts
from mmkd.synthesis.evolving.outcomes import Outcome, Rejection, Task
from mmkd.synthesis.evolving.rounds import direction_of
from mmkd.synthesis.evolving.rules import Questions
from mmkd.synthesis.evolving.seeds import Annotations, check_unchanged, seeds_of
from mmkd.synthesis.evolving.writing import Written, write_results
from mmkd.synthesis.keys import require_keys
from mmkd.synthesis.programs.tools import View
from mmkd.synthesis.rows import open_rows, usable
from mmkd.synthesis.same_settings import changed
from mmkd.whole_files import write_whole

RESULTS = ("out", "rounds", "versions", "chain")  # what may change between runs on one folder; see _same_settings


def evolve(config: EvolveConfig) -> Written:
    """Evolve the config's questions round by round and write OUT/records.jsonl, rejected.jsonl, summary.json, card.md.

    Killed at any moment, the same command goes on where it was: answers are kept one by one, rounds by chunks, and all
    that is drawn hangs on the seed and the item alone, so that the records are those of a run that was never killed.

    Raises: ConfigError for models or tools that cannot be had, or a folder begun with other settings; BudgetSpent;
        DataError for rows that cannot be used, or clearly more than 10 % of requests without a reply.
    """
    require_keys(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "evolve.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{out} is being written by another run; wait for it, or give another folder.") from None
    with lock, ExitStack() as stack:
        _same_settings(config, out / SETTINGS)
        records = open_rows(config.data)
        parts = stack.enter_context(Parts(config, out))
        run = _Run(config, out, records, parts)
        items = run.seeds()
        for number in range(1, config.rounds + 1):
            run.round(number, items)
        return write_results(config, run.journal, records, parts.identities())


@dataclass
class _Run:
    config: EvolveConfig
    out: Path
    records: Sequence[Record]
    parts: Parts

    def __post_init__(self) -> None:
        self.journal = Journal(self.out / "rounds")
        self.aside = self.out / "set_aside.jsonl"
        if not self.journal.file(0).exists():  # rows and lines that were mended are looked at anew
            self.aside.unlink(missing_ok=True)
        self.known = Annotations(self.config.annotations, RejectedLog(self.aside, mend_or_drop("annotations")))
        self.seed = self.config.evolver.sampling.seed

    def seeds(self) -> int:
        """Write round 0. Returns: how many items there are."""
        if not self.journal.file(0).exists():
            self.journal.write(0, self._seeds(RejectedLog(self.aside, mend_or_drop("data"))))
        items = self.journal.begin(0, None)
        if not items:
            self.journal.file(0).unlink()  # rows that were mended are looked at anew
            raise DataError(f"no question of {len(self.records)} records can evolve; see {self.aside}.")
        return items

    def _seeds(self, log: RejectedLog) -> Iterator[Outcome]:
        for index in usable(self.records, log, "data"):
            record = self.records[index]
            try:
                found = list(seeds_of(index, record, self.config.per_image, self.seed))
            except BadRow as error:
                log.note("data", index, record.id, error)
                continue
            view = self.parts.view(open_image(record.images[0]))
            for one in found:
                try:
                    if isinstance(one, tuple):
                        raise one[1]
                    made = self.parts.round.evolver.seed(one.content, view)
                except Rejection as rejection:
                    name = one[0] if isinstance(one, tuple) else one.item
                    log.note(
                        f"data, question {name.rpartition('#')[2]}",
                        index,
                        name,
                        BadRow(rejection.reason, rejection.kind),
                    )
                    continue
                version = Version(
                    id=f"{one.item}/v0", content=made.content, license=record.provenance.license, memo=made.memo
                )
                yield Outcome(item=one.item, index=index, image=one.image, round=0, current=version, kept=True)

    def round(self, number: int, items: int) -> None:
        done = self.journal.begin(number, items)
        if done == items:
            return
        asked = self._asked(number, done)
        before = self.journal.read(number - 1, done)
        while chunk := list(islice(before, CHUNK)):
            tasks = [self._task(number, last) for last in chunk]
            self.journal.append(number, self.parts.round.run(tasks, chunk, asked))
            done += len(chunk)
            self.parts.progress(f"round {number} of {self.config.rounds}: {done:,} of {items:,} items")

    def _asked(self, number: int, done: int) -> Questions:
        """What was kept before: in earlier rounds, and in the first `done` items of this one."""
        asked = Questions()
        for earlier in range(number + (done > 0)):
            for one in self.journal.read(earlier):
                if one.kept:
                    asked.add(one.image, one.current.content.question)
        return asked

    def _task(self, number: int, last: Outcome) -> Task:
        record = self.records[last.index]
        check_unchanged(last.image, record.images, last.item, self.out)
        image = record.images[0]
        known = self.known.of(record.id)

        def look() -> View:
            return self.parts.view(open_image(image))

        objects = [(one.label, one.box) for one in known.objects or ()]
        if known.objects is None and self.config.evolver.kind == "llm":  # the templates look for themselves
            objects = self.parts.objects(look())
        direction = direction_of(last.item, number, self.config.directions, self.seed)
        return Task(last.item, number, direction, last.current, image, look, known.caption, tuple(objects))


def _same_settings(config: EvolveConfig, file: Path) -> None:
    """Raises ConfigError where the folder was begun with settings that make other versions; so does `chain` where a
    model judges what is told."""
    free = RESULTS if config.judge.model is None else RESULTS[:-1]
    settings = config.model_dump(mode="json", exclude=set(RESULTS))
    if config.chain and "chain" not in free:
        settings["chain"] = True
    if not file.exists():
        write_whole(file, [json.dumps(settings, indent=1)])
        return
    if differ := changed(json.loads(file.read_text()), settings):
        raise ConfigError(
            f"{file.parent} was begun with other settings of {', '.join(differ)}. Only {', '.join(free)} and how "
            "an endpoint is reached may change; give another folder as out."
        )
