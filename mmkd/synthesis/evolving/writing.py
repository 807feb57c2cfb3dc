"""What a run leaves: chat records, reasons, a summary and a data card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from rich.console import Console

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.answering import both
from mmkd.synthesis.evolving.card import card
from mmkd.synthesis.evolving.items import Version, as_told
from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.summary import shown, summarise
from mmkd.synthesis.requests import digest
from mmkd.whole_files import write_whole


@dataclass(frozen=True)
class Written:
    """Counts of what was written: records, the questions in them, versions that rounds did not keep."""

    file: Path
    records: int
    questions: int
    rejected: int

    def __str__(self) -> str:
        card_file = self.file.parent / "card.md"
        return (
            f"{self.file}: {self.records:,} records with {self.questions:,} questions, {self.rejected:,} versions "
            f"rejected · {card_file}"
        )


def write_results(
    config: EvolveConfig, journal: Journal, records: Sequence[Record], identities: dict[str, str]
) -> Written:
    """records.jsonl, rejected.jsonl, summary.json and card.md, of the config's rounds; each whole or not at all."""
    out = Path(config.out)
    counts = {"questions": 0}
    converted = Converter(config, records)

    def counted() -> Iterator[Record]:
        for record in converted.records(journal):
            counts["questions"] += len(record.turns) // 2
            yield record

    total = write_jsonl(out / "records.jsonl", counted())
    rejected = _write_rejected(out / "rejected.jsonl", journal, config.rounds)
    summary = summarise(journal, config.rounds)
    summary |= {"made by": identities, "records": total, "questions": counts["questions"]}
    summary["licenses"] = sorted(converted.licenses)
    summary["sources"] = sorted(converted.sources)
    write_whole(out / "summary.json", [json.dumps(summary, indent=1, ensure_ascii=False), "\n"])
    write_whole(out / "card.md", [card(config, summary)])
    Console(stderr=True).print(shown(summary))
    return Written(out / "records.jsonl", total, counts["questions"], rejected)


class Converter:
    """Versions as chat records: the questions of one seed record, of one kind of versions, are the turns of one.

    Attributes:
        licenses, sources: of all records so far.
    """

    def __init__(self, config: EvolveConfig, seeds: Sequence[Record]):
        self.config, self.seeds = config, seeds
        self.licenses: set[str] = set()
        self.sources: set[str] = set()

    def records(self, journal: Journal) -> Iterator[Record]:
        """newest: a record for each image. all: a record for each image and round that kept something of it."""
        last = self.config.rounds
        for number in [last] if self.config.versions == "newest" else range(last + 1):
            kept = (one for one in journal.read(number) if self.config.versions == "newest" or one.kept)
            for index, group in groupby(kept, key=lambda one: one.index):
                yield self.record(index, number, [one.current for one in group])

    def record(self, index: int, number: int, versions: Sequence[Version]) -> Record:
        seed = self.seeds[index]
        turns = [turn for version in versions for turn in self.turns(version)]
        models = [version.model for version in versions]
        license = seed.provenance.license
        for name in dict.fromkeys(version.license for version in versions):
            license = both(license, name) if name != license else license
        newest = max(versions, key=lambda one: one.round)
        provenance = Provenance(
            parent=seed.id,
            engine="evolve",
            round=newest.round,
            model="; ".join(dict.fromkeys(filter(None, models))) or None,
            prompt_hash=digest([turn.text for turn in turns if turn.role == "user"]),
            seed=self.config.evolver.sampling.seed,
            license=license,
        )
        self.licenses.add(license or "unknown")
        self.sources.add(seed.source or "unnamed")
        task = newest.direction or seed.task
        return replace(seed, id=f"{index}:{seed.id}/v{number}", turns=turns, task=task, provenance=provenance)

    def turns(self, version: Version) -> tuple[Turn, Turn]:
        question, answer = as_told(version.content, version.direction, self.config.chain)
        return Turn("user", question), Turn("assistant", answer)


def _write_rejected(file: Path, journal: Journal, rounds: int) -> int:
    """A line for each version that was not kept: round, item, direction, kind, reason, and what was proposed."""

    def lines() -> Iterator[str]:
        for number in range(1, rounds + 1):
            for one in journal.read(number):
                if not one.kept:
                    row = one.model_dump(include={"round", "item", "index", "direction", "kind", "reason", "candidate"})
                    yield json.dumps(row | {"parent": one.current.id}, ensure_ascii=False) + "\n"

    return write_whole(file, lines())
