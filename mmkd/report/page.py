"""Pages from templates: every value is escaped, and a page needs nothing outside itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmkd import __version__
from mmkd.report.folder import Folder
from mmkd.report.plots import amount


@dataclass
class Numbers:
    """A table: names on the left, numbers on the right."""

    heads: list[str]
    rows: list[list[str]]


def write_page(folder: Folder, template: str, contents: dict[str, Any]) -> Path:
    """Write FOLDER/report.html and return its path. Text that no UTF-8 file can hold is replaced by question marks."""
    environment = Environment(
        loader=PackageLoader("mmkd", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["amount"] = amount
    page = environment.get_template(template).render(
        title=folder.title,
        notes=folder.notes,
        style=own_file("style.css"),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **contents,
    )
    path = folder.path / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def own_file(name: str) -> Markup:
    """A file of this package, to stand in a page as it is."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))
