"""Verified programs on scenes that their run never saw: how many of them were right by luck.

Truth comes by construction, so a question can be asked again of any scene that offers it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mmkd.data.scene_questions import offers
from mmkd.data.scenes import scene
from mmkd.errors import DataError
from mmkd.synthesis.programs.answers import score
from mmkd.synthesis.programs.runner import Runner
from mmkd.synthesis.programs.verifier import NEEDED

SCENE = re.compile(r"scenes/(train|validation|test)/(\d+)/(\d+)/\d+")  # split, seed, grid, index


@dataclass
class Accepted:
    """A program that was verified for a question.

    Attributes:
        records: rationales of the run that tell this program's trace.
        tried: new scenes on which it ran; wrong: those where it gave another answer than the true one, or none.
    """

    question: str
    task: str
    program: str
    records: int = 0
    tried: int = field(default=0, init=False)
    wrong: int = field(default=0, init=False)

    def false(self, share: float) -> bool:
        """Whether it is wrong on a larger share of new scenes."""
        return self.wrong > share * self.tried


@dataclass(frozen=True)
class Drawn:
    """Where a run's scenes come from: split, grid, and seeds."""

    split: str
    grid: int
    seeds: frozenset[int]


def accepted(run: Path) -> tuple[list[Accepted], Drawn]:
    """What a run verified, each program of a question once, and the scenes that it ran on.

    Args:
        run: folder with programs.jsonl and records.jsonl; round-N where the writer was tuned.

    Raises: DataError where it holds no verified program, or rows of anything but scenes of one split and grid.
    """
    found: dict[tuple[str, str], Accepted] = {}
    drawn: dict[tuple[str, int], set[int]] = defaultdict(set)
    for line in _lines(run / "programs.jsonl"):
        place = SCENE.match(line["id"])
        if place is None:
            raise DataError(f"{run}: row {line['id']} is no scene of mmkd, so nobody knows other images' answers.")
        drawn[place[1], int(place[3])].add(int(place[2]))
        if line["verdict"] == "verified":
            pair = line["question"], line["program"]
            found.setdefault(pair, Accepted(line["question"], line["task"], line["program"]))
    if len(drawn) > 1 or not found:
        what = f"scenes of {len(drawn)} splits or grids; give a run on one" if found else "no verified program"
        raise DataError(f"{run / 'programs.jsonl'} holds {what}.")
    for line in _lines(run / "records.jsonl"):
        pair = line["turns"][0]["text"], line["provenance"]["program"]
        if pair in found:
            found[pair].records += 1
    [((split, grid), seeds)] = drawn.items()
    return list(found.values()), Drawn(split, grid, frozenset(seeds))


def try_elsewhere(programs: list[Accepted], drawn: Drawn, runner: Runner, seed: int, each: int, most: int) -> None:
    """Run every program on the first `each` scenes of another seed that offer its question, of `most` looked at.

    Raises: DataError where the run had scenes of that seed.
    """
    if seed in drawn.seeds:
        raise DataError(f"seed {seed}: the run had scenes of that seed; give another, so that they are new.")
    waiting: dict[str, list[Accepted]] = defaultdict(list)
    for one in programs:
        waiting[one.question].append(one)
    for index in range(most):
        if not waiting:
            return
        here = scene(drawn.split, index, seed, drawn.grid, questions=1)  # type: ignore[arg-type]  # SCENE names splits
        forms = chain.from_iterable(kind.values() for kind in offers(list(here.things), drawn.split == "test").values())
        truth = {one.text: one.answer for form in forms for answers in form.values() for one in answers}
        image = here.image()
        for question in waiting.keys() & truth.keys():
            for one in waiting[question]:
                answer = runner.run(one.program, image, question).answer
                one.tried += 1
                one.wrong += answer is None or score(answer, truth[question]) < NEEDED
            if one.tried == each:
                del waiting[question]


def shares(programs: list[Accepted], share: float) -> dict[str, dict[str, float]]:
    """By type of question, and over all as "all": programs tried, untried (no scene offered their question), and
    percentages of false ones: false_accepts of programs, false_records of rationales."""
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    for one in programs:
        for kind in (one.task, "all"):
            if not one.tried:
                tally[kind]["untried"] += 1
                continue
            wrong = one.false(share)
            tally[kind].update(tried=1, records=one.records, false=wrong, false_records=wrong * one.records)
    return {
        kind: {
            "tried": count["tried"],
            "untried": count["untried"],
            "false_accepts": 100 * count["false"] / max(1, count["tried"]),
            "false_records": 100 * count["false_records"] / max(1, count["records"]),
        }
        for kind, count in sorted(tally.items(), key=lambda pair: (pair[0] == "all", pair[0]))
    }


def _lines(file: Path):
    if not file.is_file():
        raise DataError(f"{file} is missing; give the folder of a finished run of mmkd programs.")
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
