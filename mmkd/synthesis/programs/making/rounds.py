"""Rounds of self-improvement: write programs, keep what holds, tune the writer on it, write again."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmkd.config.programs_schema import ProgramsConfig
from mmkd.config.synthesis_schema import LanguageModelSection, ModelSection
from mmkd.data.record_files import jsonl
from mmkd.data.records import Record
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.paid import purse_of
from mmkd.synthesis.programs.making.run import Made, make_programs
from mmkd.synthesis.visible import in_table
from mmkd.whole_files import write_whole


def make_rounds(config: ProgramsConfig) -> Made:
    """As `make_programs`, with the writer tuned between rounds on the programs verified so far.

    Round n stands in OUT/round-n, its tuned writer in OUT/round-n/writer. OUT/records.jsonl holds each question once,
    with the rationale of the last round in which one of its programs held; OUT/yield.json the yield of each round.
    Killed at any moment, the same command goes on.
    """
    if config.tune is None:
        return make_programs(config)
    out, made = Path(config.out), []
    purse = purse_of(out)
    for number in range(config.tune.rounds + 1):
        one = of_round(config, number)
        made.append(make_programs(one, round=number, purse=purse))
        if number < config.tune.rounds:
            from mmkd.synthesis.programs.making.tuning import tune  # torch

            lessons = taught(made, config.tune.examples)
            tune(_first(config).source, lessons, config.tune, Path(one.out) / "writer")
    write_jsonl(out / "records.jsonl", merged(made))
    yields = {f"round-{number}": one.yields for number, one in enumerate(made)}
    write_whole(out / "yield.json", [json.dumps(yields, indent=2), "\n"])
    Console(stderr=True).print(_table(yields))
    return Made(out / "records.jsonl", made[-1].yields, made[-1].bad)


def of_round(config: ProgramsConfig, number: int) -> ProgramsConfig:
    """What `make_programs` does in a round: by the writer that was tuned after the round before, with its prompts."""
    out, language = Path(config.out), _first(config)
    update: dict[str, Any] = {"out": str(out / f"round-{number}"), "tune": None}
    if number:
        language = language.model_copy(update={"source": f"local:{out / f'round-{number - 1}' / 'writer'}"})
        if config.tune is not None and config.tune.examples is not None:
            update["examples"] = config.tune.examples
    return config.model_copy(update={**update, "writer": ModelSection(language=LanguageModelSection(**dict(language)))})


def _first(config: ProgramsConfig) -> LanguageModelSection:
    assert config.writer.language is not None  # the schema's own check
    return config.writer.language


def taught(made: list[Made], examples: int | None) -> list[Record]:
    """What the writer is tuned on: the programs that held in all rounds so far, a question's newest round alone.

    Args:
        examples: how many are left in the prompts, the most alike; None for all.
    """
    found: dict[str | None, list[Record]] = {}
    for one in made:
        file = one.file.with_name("writer.jsonl")
        known: dict[str | None, list[Record]] = defaultdict(list)
        for record in jsonl(str(file)):
            known[record.provenance.parent].append(record if examples is None else _shortened(record, examples))
        found |= known
    return [record for records in found.values() for record in records]


def _shortened(record: Record, examples: int) -> Record:
    """With fewer examples in its prompt: system turn, examples with the most alike last, question, program."""
    system = [turn for turn in record.turns[:1] if turn.role == "system"]
    kept = record.turns[len(system) :][-2 * (examples + 1) :]
    return replace(record, turns=[*system, *kept])


def merged(made: list[Made]) -> Iterator[Record]:
    """Each question once. Two sources may call a record alike, so its name alone tells none from another."""
    rounds = [{_question(record): record for record in jsonl(str(one.file))} for one in made]
    for name in dict.fromkeys(name for records in rounds for name in records):
        known = [records[name] for records in rounds if name in records]
        told = [record for record in known if record.turns[-1].rationale is not None]
        yield (told or known)[-1]


def _question(record: Record) -> tuple[str | bytes, ...]:
    """What tells it from all others; each round's file says a picture's path from its own folder."""
    images = (os.path.realpath(image) if isinstance(image, str) else image for image in record.images)
    return (record.id, record.turns[0].text, *images)


def _table(yields: dict[str, dict[str, Any]]) -> Table:
    types = list(dict.fromkeys(kind for one in yields.values() for kind in one))
    table = Table("verified", *map(in_table, types))
    for name, one in yields.items():
        table.add_row(name, *(f"{one[t]['verified'] / max(1, one[t]['rows']):.1%}" if t in one else "" for t in types))
    return table
