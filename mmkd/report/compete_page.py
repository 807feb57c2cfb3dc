"""The page of `mmkd compete`: curves over rounds, then both sides' answers, those the student fails at first."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmkd.report import browse
from mmkd.report.album import Album
from mmkd.report.answers import Asked, Said
from mmkd.report.browse import Node, Row, browser, number, text
from mmkd.report.folder import Folder, json_lines
from mmkd.report.page import Numbers
from mmkd.report.plots import percent, plain
from mmkd.report.sections import Section, count_table, round_chart
from mmkd.synthesis.competing.summary import CAPTION, COLUMNS, cells

ORDER = {"hard": 0, "win": 1, "weak": 2, "unscored": 3, "easy": 4}  # what is looked for first
SHOWN = {"hard": "Difficult items", "win": "Wins of the student"}  # kinds with examples, and their heading
EXAMPLES = 6
MOST_BEFORE = 12  # of a family; rounds are fewer
SIDES = (("teacher", "teacher"), ("student", "s0"))  # name, style


def compete_page(folder: Folder) -> dict[str, Any]:
    """What data.html.jinja shows of an OUT of `mmkd compete`, finished or not."""
    rounds = folder.try_to(
        "rounds", lambda: list(json_lines(folder.path / "rounds.jsonl")), [], "The first round writes it when it ends."
    )
    told = list(folder.each("rounds", rounds, lambda row: (row, cells(row), _curve_points(row))))
    sections = []
    if told:
        points = [one for _, _, one in told]
        sections.append(
            Section("Rounds", CAPTION, _curves(points), Numbers(list(COLUMNS), [row for _, row, _ in told]))
        )
    for part, key, heading in (
        ("augmented", "gone", "Why drafts of new questions did not stay"),
        ("augmented", "worded", "Drafts in other words, and why others kept their own"),
        ("refined", "gone", "Why mended answers made no preference pair"),
    ):
        if table := count_table("reason", _counted([row for row, _, _ in told], part, key)):
            sections.append(Section(heading, table=table))
    album = Album()
    judged, total, newest = _first(folder)
    for kind, heading in SHOWN.items():
        if found := newest.get(kind):
            about = f"Of the pool in round {found.round}: the first of {found.count:,}."
            sections.append(Section(heading, about, cards=[one.card(album) for one in found.first]))
    filters = ["kind", "round", "split", "type"]
    rows = (one.row(album) for one in judged)
    return {
        "sentence": "Teacher against student, scores from 1 to 10.",
        "facts": _facts(told[-1][2]) if told else [],
        "sections": sections,
        "browser": browser(folder, "Judged answers", filters, rows, total, album),
    }


def _counted(rows: list[dict[str, Any]], part: str, key: str) -> dict[str, dict[str, int]]:
    """By round, what a part of it counts under a key, e.g. what of its drafts went, by reason."""
    return {
        f"round {row['round']}": {text(kind, 80): int(number(count)) for kind, count in made[key].items()}
        for row in rows
        if isinstance(made := row.get(part), dict) and isinstance(made.get(key), dict)
    }


def _curve_points(row: dict[str, Any]) -> dict[str, float]:
    found = {"round": number(row["round"])}
    for name, part in (("held", row["held_out"]), ("pool", row.get("pool_standing"))):
        if part:
            found |= {f"{name} {key}": number(part[key]) for key in ("teacher", "student", "win_rate", "hard_share")}
    if row.get("augmented"):
        found["yield"] = number(row["augmented"]["yield"])
    return found


def _curves(rounds: list[dict[str, float]]) -> list[Any]:
    def line(name: str) -> list[tuple[float, float]]:
        return [(one["round"], one[name]) for one in rounds if name in one]

    charts = []
    for split, title in (("held", "Scores on the held-out split"), ("pool", "Scores on the pool")):
        charts += round_chart(title, [(name, line(f"{split} {name}"), style) for name, style in SIDES], plain)
    for name, title in (
        ("held win_rate", "Held-out win rate of the student"),
        ("pool hard_share", "Share of difficult items in the pool"),
        ("yield", "Share of new drafts that stayed"),
    ):
        charts += round_chart(title, [(title, line(name), "s0")], percent, from_zero=True)
    return charts


def _facts(last: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (f"{last['held student']:.2f}", "student, held-out"),
        (f"{last['held teacher']:.2f}", "teacher, held-out"),
        (percent(round(last["held win_rate"], 3)), "held-out win rate"),
        (f"{last['round']:.0f}", "rounds"),
    ]


class Judged:
    """One assessed item.

    Args:
        item: its row in a pool; row: its verdict.
        before: what it was made from, at its newest verdict, the eldest first.
    """

    def __init__(
        self, item: dict[str, Any], row: dict[str, Any], round: int, held_out: bool, before: Sequence[Judged] = ()
    ):
        self.round, self.held_out, self.kind, self.before = round, held_out, text(row["kind"], 40), before
        self.question, self.reference = text(item["question"]), text(item.get("reference"))
        self.task = text(item.get("task"), 80)
        scores = row["scores"]
        shown = [f", {number(score):g}" for score in scores] if scores is not None else ["", ""]
        self.said = [Said(side + shown[place], text(row[side])) for place, (side, _) in enumerate(SIDES)]
        self.reasons = [text(reason) for reason in row.get("reasons") or ()]
        self.error = text(row.get("error"))
        self.image: str | None = item["images"][0] if item["images"] else None
        self.agree = row.get("agree") is not False
        self.id, self.parent = text(row["id"], 80), text(item.get("parent"), 80)

    def card(self, album: Album) -> dict[str, Any]:
        picture = album.add(self.image)
        asked = Asked(self.question, self.reference or "–", {}, self.said)
        return vars(asked) | {"picture": album.uris[picture.place] if picture else ""}

    def row(self, album: Album) -> Row:
        picture = album.add(self.image)
        split = "held-out" if self.held_out else "pool"
        lines = [("kind", self.kind)] + [(one.by, one.text or "(nothing)") for one in self.said]
        if self.reference:
            lines.append(("truth", self.reference))
        lines += [("judge", reason) for reason in self.reasons if reason]
        if not self.agree:
            lines.append(("order", "the two orders of the answers prefer different sides"))
        if self.error:
            lines.append(("no verdict", self.error))
        made = f", made from {self.parent}" if self.parent else ""
        lines.append(("from", f"{self.id}, round {self.round}, {split}{made}"))
        facets = [[self.kind, str(self.round), split, self.task]]
        nodes = [one.node(depth) for depth, one in enumerate((*self.before, self))] if self.before else []
        return Row(self.question, facets, picture.place if picture else None, lines=lines, nodes=nodes)

    def node(self, depth: int) -> Node:
        """As a member of a family: its question, both answers with their scores, and what it was found to be."""
        said = " · ".join(f"{one.by}: {one.text or '(nothing)'}" for one in self.said)
        style = {"hard": "wrong", "easy": "right", "win": "right"}.get(self.kind, "")
        return Node(f"{self.id}, {self.kind} in round {self.round}", f"{self.question}\n{said}", style, depth)


@dataclass
class Newest:
    """The pool's items of one kind in the newest round that has some.

    Attributes:
        first: those that are shown; count: all of them.
    """

    round: int
    first: list[Judged] = field(default_factory=list)
    count: int = 0


def _first(folder: Folder) -> tuple[list[Judged], int, dict[str, Newest]]:
    """As many as a page holds, what is looked for first in front; how many there are; and the newest of SHOWN. No
    more are held: there is a verdict for each item and round."""
    count, newest = 0, dict[str, Newest]()

    def noted() -> Iterator[Judged]:
        nonlocal count
        for one in _judged(folder):  # the first round first
            count += 1
            if one.kind in SHOWN and not one.held_out:
                if one.kind not in newest or newest[one.kind].round < one.round:
                    newest[one.kind] = Newest(one.round)
                newest[one.kind].count += 1
                if len(newest[one.kind].first) < EXAMPLES:
                    newest[one.kind].first.append(one)
            yield one

    def order(one: Judged) -> tuple[int, bool, int]:
        return -one.round, one.held_out, ORDER.get(one.kind, 5)

    judged = heapq.nsmallest(browse.MOST_ROWS, noted(), key=order)
    return judged, count, newest


def _judged(folder: Folder) -> Iterator[Judged]:
    numbers = [one.name.removeprefix("round-") for one in folder.path.glob("round-*") if one.is_dir()]
    held_out = _items(folder, folder.path / "given" / "held_out.jsonl")
    newest: dict[str, Judged] = {}
    for name in sorted((name for name in numbers if re.fullmatch("[0-9]{1,4}", name)), key=int):
        place = int(name)
        part = folder.path / f"round-{name}"
        pool = _items(folder, folder.path / "pool" / f"{place - 1}.jsonl") if place else {}
        for file, items, held in (("verdicts.jsonl", pool, False), ("held_out.jsonl", held_out, True)):
            if (part / file).is_file():

                def judged(row: dict[str, Any], items: Any = items, place: int = place, held: bool = held) -> Judged:
                    item = items[row["id"]]
                    # Of what was given, the parent is a record's name.
                    parent = newest.get(text(item.get("parent"), 80)) if item.get("engine") else None
                    one = Judged(item, row, place, held, (*parent.before, parent)[-MOST_BEFORE:] if parent else ())
                    if not held:
                        newest[one.id] = one
                    return one

                yield from folder.each(f"verdicts of round {name}", json_lines(part / file), judged)


def _items(folder: Folder, file: Path) -> dict[str, dict[str, Any]]:
    """Items of a pool by id, image paths as they can be opened."""

    def read(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return row["id"], row | {"images": [str(file.parent / image) for image in row["images"]]}

    return dict(folder.each(f"items of {file.parent.name}/{file.name}", json_lines(file), read))
