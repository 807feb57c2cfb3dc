"""The page of `mmkd programs`: yields, then every program with verdict, trace on the picture and rationale."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmkd.data.record_files import JsonLines
from mmkd.report.album import Album, Pictures, first_image
from mmkd.report.browse import MOST_CODE, Row, browser, number, text
from mmkd.report.folder import Folder, json_lines, mapping, read_json
from mmkd.report.page import Numbers
from mmkd.report.plots import percent
from mmkd.report.sections import Section, count_table, round_chart
from mmkd.report.traces import boxes, calls

Yields = dict[str, dict[str, Any]]  # by type of question; see `making.yields.Yields.to_dict`
ALL = "all"
COUNTS = ("rows", "ran", "right", "verified", "texts", "texts_verified")


def programs_page(folder: Folder) -> dict[str, Any]:
    """What data.html.jinja shows of an OUT of `mmkd programs`, with rounds or without. A page of an unfinished run has
    what is there."""
    parts = _rounds(folder.path) or [folder.path]
    yields = {part.name: found for part in parts if (found := _yields(folder, part))}
    sections = [_yield_table(name if len(parts) > 1 else "", found) for name, found in yields.items()]
    if len(yields) > 1:
        sections.insert(0, Section("Rounds", "Share of questions with a verified program.", _curves(yields)))
    reasons = {
        name if len(parts) > 1 else "programs": {text(kind, 80): count for kind, count in one[ALL]["reasons"].items()}
        for name, one in yields.items()
    }
    if table := count_table("reason", reasons):
        sections.append(Section("Why programs are not verified", table=table))
    judged = {
        name if len(parts) > 1 else "programs": {
            text(kind, 80): count for kind, count in one[ALL].get("judged", {}).items()
        }
        for name, one in yields.items()
    }
    if table := count_table("verdict", judged):
        about = "Answers in other words than the label's: whether a judge took them for the same."
        sections.append(Section("Answers compared by a judge", about, table=table))
    if table := count_table("reason", {"rows": _set_aside(folder, parts)}):
        about = "Rows that cannot be used, and questions without a verified program."
        sections.append(Section("Set aside", about, table=table))
    album = Album()
    total = sum(len(JsonLines(file)) for part in parts if (file := part / "programs.jsonl").is_file())
    filters = ["type", "verdict", "reason", *(["round"] if len(parts) > 1 else [])]
    rows = (row for part in reversed(parts) for row in _programs(folder, part, album, len(parts) > 1))
    every = list(yields.values())[-1][ALL] if yields else None
    return {
        "sentence": "Programs over vision tools, written by a model, run and verified.",
        "facts": _facts(every) if every else [],
        "sections": sections,
        "browser": browser(folder, "Programs", filters, rows, total, album),
    }


def _rounds(path: Path) -> list[Path]:
    found = [one for one in path.glob("round-*") if re.fullmatch(r"round-[0-9]{1,4}", one.name) and one.is_dir()]
    return sorted(found, key=lambda one: int(one.name.removeprefix("round-")))


def _yields(folder: Folder, part: Path) -> Yields:
    def read() -> Yields:
        found = mapping(read_json(part / "yield.json"))
        for one in [found[ALL], *found.values()]:
            counted = [mapping(one["reasons"]), mapping(one.get("judged", {}))]
            for count in [*(one[name] for name in COUNTS), *(count for each in counted for count in each.values())]:
                number(count)
        return found

    return folder.try_to(f"yields of {part.name}", read, {}, "The run writes it when it ends.")


def _share(one: dict[str, Any]) -> float:
    return one["verified"] / max(1, one["rows"])


def _yield_table(name: str, found: Yields) -> Section:
    heads = ["type", "questions", "ran", "right", "verified", "share", "different texts", "commonest reason why not"]
    rows = []
    for kind, one in found.items():
        counts = [f"{one[key]:,}" for key in ("rows", "ran", "right", "verified")]
        why = max(one["reasons"], key=one["reasons"].get, default="")
        texts = f"{one['texts_verified']:,} of {one['texts']:,}"
        rows.append([text(kind, 80), *counts, percent(round(_share(one), 3)), texts, text(why, 80)])
    about = "Questions for which some program ran, gave the right answer, was verified."
    return Section(f"Yield by type of question{f', {name}' if name else ''}", about, table=Numbers(heads, rows))


def _curves(yields: dict[str, Yields]) -> list[Any]:
    kinds = list(dict.fromkeys(kind for one in yields.values() for kind in one if kind != ALL))
    numbers = {name: float(name.removeprefix("round-")) for name in yields}
    charts = []
    for kind in [ALL, *kinds]:
        points = [(numbers[name], _share(one[kind])) for name, one in yields.items() if kind in one]
        charts += round_chart(text(kind, 60), [("verified", points, "s0")], percent, from_zero=True)
    return charts


def _facts(every: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (percent(round(_share(every), 3)), "of questions have a verified program"),
        (f"{every['rows']:,}", "questions"),
        (f"{every['verified']:,}", "rationales"),
    ]


def _set_aside(folder: Folder, parts: list[Path]) -> dict[str, int]:
    """By kind, of the last round."""
    files = [file for part in parts if (file := part / "rejected.jsonl").is_file()]
    rows = json_lines(files[-1]) if files else iter(())
    return dict(Counter(folder.each("set aside", rows, lambda row: text(row["kind"], 80))))


def _programs(folder: Folder, part: Path, album: Album, rounds: bool) -> Iterator[Row]:
    records = folder.try_to("pictures and rationales", lambda: Pictures(part / "records.jsonl"), None)

    def shown(row: dict[str, Any]) -> Row:
        record = records.record(text(row["id"])) if records else None
        picture = album.add(first_image(record))
        facets = [text(row[key], 80) for key in ("task", "verdict", "reason")]
        found = Row(text(row["question"]), [[*facets, *([part.name] if rounds else [])]])
        found.lines = [("verdict", ", ".join(filter(None, facets[1:]))), ("answer", text(row["answer"]))]
        if row["label"] is not None:
            found.lines.append(("truth", text(row["label"])))
        if row.get("judged") is not None:
            found.lines.append(("judge", "the same as the truth" if row["judged"] is True else "not the truth"))
        if row["message"]:
            found.lines.append(("message", text(row["message"])))
        if record and record.turns and record.provenance.program == row["program"] and row["verdict"] == "verified":
            found.lines.append(("rationale", text(record.turns[-1].rationale, MOST_CODE)))
        found.lines.append(("from", ", ".join(filter(None, [text(row["id"], 80), part.name if rounds else ""]))))
        found.nodes, found.more = calls(row["trace"]), [("program", text(row["program"], MOST_CODE))]
        if picture:
            found.picture, found.boxes = picture.place, boxes(row["trace"], picture)
        return found

    return folder.each("programs", json_lines(part / "programs.jsonl"), shown)
