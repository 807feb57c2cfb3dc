"""The page of `mmkd evolve`: rounds, reasons, and every item with the family tree of its versions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from mmkd.data.images import read_image
from mmkd.data.record_files import JsonLines
from mmkd.errors import MmkdError
from mmkd.report.album import Album, Pictured
from mmkd.report.browse import MOST_ROWS, browser, text
from mmkd.report.family import family
from mmkd.report.folder import Folder
from mmkd.report.page import Numbers
from mmkd.report.plots import percent, plain
from mmkd.report.sections import Section, count_table, round_chart
from mmkd.synthesis.evolving.items import DIRECTIONS
from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.synthesis.evolving.summary import cells, summarise

HEADS = ["round", "items", "kept", "yield", "difficulty", "parents'", "steps", "skills"]
STYLES = ("s0", "s1", "teacher")


class Rounds(Journal):
    """The rounds of a folder; lines that are no outcomes, as a kill or a hand leaves them, are passed over.

    Attributes:
        broken: file and line number of those.
    """

    def __init__(self, folder: Folder):
        super().__init__(folder.path / "rounds")
        numbers = [int(one.stem) for one in self.folder.glob("*.jsonl") if re.fullmatch("[0-9]{1,4}", one.stem)]
        self.last = next(number for number in range(len(numbers), -1, -1) if {*range(number + 1)} <= {*numbers})
        self.broken: set[tuple[int, int]] = set()

    def read(self, round: int, start: int = 0) -> Iterator[Outcome]:
        with self.file(round).open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    outcome = Outcome.model_validate_json(line)
                except ValidationError:
                    self.broken.add((round, number))
                    continue
                if number >= start:
                    yield outcome


def evolve_page(folder: Folder) -> dict[str, Any]:
    """What data.html.jinja shows of an OUT of `mmkd evolve`, finished or not."""
    rounds = Rounds(folder)
    summary = summarise(rounds, rounds.last)["rounds"]
    about = "Difficulty of the versions that were kept, and of their parents, from 1 to 10. Means over all items."
    sections = [Section("Rounds", about, _curves(summary), Numbers(HEADS, [cells(row) for row in summary]))]
    rejected = {f"round {row['round']}": row["rejected"] for row in summary if row["round"]}
    if table := count_table("reason", rejected):
        sections.append(Section("Why versions were not kept", table=table))
    for name in ("forms", "skills"):
        counted = {f"round {row['round']}" if row["round"] else "seeds": row[name] for row in summary}
        if table := count_table(name.removesuffix("s"), counted):
            sections.append(Section(f"{name.title()} of the items as they stand", table=table))
    if rounds.broken:
        folder.notes.append(f"rounds: {len(rounds.broken):,} lines cannot be read and are left out.")
    album, items = Album(), _items(rounds)
    pictures = folder.try_to(
        "pictures", lambda: _pictures(folder, album), {}, "The run writes its records when it ends."
    )
    rows = (family(versions, pictures.get(versions[0].image)) for versions in items.values())
    tried = [row for row in summary if row["round"]]
    filters = ["round", "direction", "outcome", "reason", "form"]
    return {
        "sentence": "Questions that grew in rounds, each version checked and judged against its parent.",
        "facts": [
            (f"{summary[0]['items']:,}", "items"),
            (f"{len(tried):,}", "rounds"),
            (f"{sum(row['kept'] for row in tried):,}", "versions kept"),
        ],
        "sections": sections,
        "browser": browser(folder, "Items and their family trees", filters, rows, summary[0]["items"], album),
    }


def _curves(summary: list[dict[str, Any]]) -> list[Any]:
    tried = [row for row in summary if row["round"]]

    def line(name: str, rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
        return [(row["round"], row[name]) for row in rows if row.get(name) is not None]

    shares = []
    for direction, style in zip(DIRECTIONS, STYLES, strict=True):
        counts = [(row["round"], row["directions"][direction]) for row in tried if direction in row["directions"]]
        shares.append((direction, [(x, one["kept"] / one["tried"]) for x, one in counts], style))
    charts = round_chart("Yield", [("all", line("yield", tried), "s0")], percent, from_zero=True)
    charts += round_chart("Yield by direction", shares, percent, from_zero=True)
    difficulty = [("kept", "difficulty of kept", "s0"), ("their parents", "difficulty of their parents", "s1")]
    charts += round_chart("Difficulty", [(name, line(key, tried), style) for name, key, style in difficulty], plain)
    lengths = [("steps", "steps per item", "s0"), ("skills", "skills per item", "s1")]
    charts += round_chart("Steps and skills of an item", [(n, line(k, summary), s) for n, k, s in lengths], plain)
    return charts


def _items(rounds: Rounds) -> dict[str, list[Outcome]]:
    """What each round did to each item, seeds first; no more items than a page holds."""
    found: dict[str, list[Outcome]] = {}
    for number in range(rounds.last + 1):
        for one in rounds.read(number):
            if one.item in found:
                found[one.item].append(one)
            elif not number and len(found) < MOST_ROWS:
                found[one.item] = [one]
    return found


def _pictures(folder: Folder, album: Album) -> dict[str, Pictured]:
    """Pictures of records.jsonl by their SHA-256, by which rounds know them, until the album is full."""
    found: dict[str, Pictured] = {}
    rows = JsonLines(folder.path / "records.jsonl")
    for place in range(len(rows)):
        try:
            images = rows[place].images
            name = hashlib.sha256(read_image(images[0])).hexdigest() if images else ""
        except (MmkdError, RecursionError):
            continue
        if name and name not in found and (picture := album.add(images[0])):
            found[name] = picture
        if album.full:
            left = len(rows) - place - 1
            if left:
                folder.notes.append(
                    f"pictures: those of the last {left:,} records are left out; {text(len(found))} are shown."
                )
            break
    return found
