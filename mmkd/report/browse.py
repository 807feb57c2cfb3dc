"""Many rows in one page: embedded as JSON, of which the page's script shows one leaf at a time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from mmkd.report.album import Album
from mmkd.report.folder import Folder
from mmkd.report.page import own_file

MOST_ROWS = 10_000
MOST_BYTES = 40_000_000  # of the rows' JSON
MOST_TEXT = 600  # characters of one text
MOST_CODE = 4000  # of a program, or a list of steps
MOST_VALUES = 100  # of one filter, the commonest


@dataclass(frozen=True)
class Box:
    """A rectangle on a picture, in per cent of its width and height.

    Attributes:
        style: "found" or "given", a class of the page's style.
    """

    left: float
    top: float
    width: float
    height: float
    label: str
    style: str = "found"


@dataclass(frozen=True)
class Node:
    """One line of a list that may be a tree: a tool call, a version."""

    head: str
    text: str
    style: str = ""  # "right", "wrong" or nothing
    depth: int = 0


@dataclass
class Row:
    """Attributes:
    facets: values of the filters, in their order. Several where a row has several parts: it is shown where one of
        them fits all filters.
    picture: place in the album.
    lines: (name, text).
    more: (name, text) of long texts, folded away.
    """

    title: str
    facets: list[list[str]]
    picture: int | None = None
    boxes: list[Box] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    more: list[tuple[str, str]] = field(default_factory=list)


def text(value: Any, most: int = MOST_TEXT) -> str:
    """Any JSON value as text, cut where it is long."""
    found = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return found if len(found) <= most else found[:most] + f" … ({len(found):,} characters)"


def number(value: Any) -> float:
    """Raises ValueError for what is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{text(value, 40)} is no number")
    return float(value)


def browser(
    folder: Folder, name: str, filters: Sequence[str], rows: Iterable[Row], total: int, album: Album
) -> dict[str, Any] | None:
    """What data.html.jinja needs to show the rows; None where there are none.

    Args:
        name: what the rows are called; total: how many there are, of which the page may hold fewer.
        filters: names, in the order of `Row.facets`.
    """
    taken: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        taken.append(asdict(row))
        size += len(json.dumps(taken[-1]))
        if len(taken) >= MOST_ROWS or size >= MOST_BYTES:
            break
    if len(taken) < total:
        folder.notes.append(f"{name}: {total - len(taken):,} of {total:,} are left out.")
    album.note(folder)
    if not taken:
        return None
    data = {"filters": _values(filters, taken), "rows": taken, "pictures": album.uris}
    script = own_file("browse.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Of all scripts in the page the browser runs this one alone; "<", ">" and "&" of the data are written as \u003c, ..
    policy = Markup("; script-src 'sha256-{}'").format(Markup(digest))
    return {"name": name, "data": htmlsafe_json_dumps(data), "script": script, "policy": policy}


def _values(filters: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each filter with the values that rows have of it, and how many rows have each."""
    found = []
    for place, name in enumerate(filters):
        counts = Counter(value for row in rows for value in {facet[place] for facet in row["facets"]} if value)
        common = sorted(value for value, _ in counts.most_common(MOST_VALUES))
        found.append({"name": name, "values": [[value, counts[value]] for value in common]})
    return found
