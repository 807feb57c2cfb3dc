"""The README's picture: accuracy by tokens an image is read as, from the rows of a bench.

python -m bench.picture demo_full    # -> docs/images/demo_full.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from bench.rows import ROOT, Row, newest, read

matplotlib.use("svg")

INK, LINE, GRID = "#57606a", "#0969da", "#d0d7de"


def readings(rows: list[Row]) -> dict[str, Row]:
    """Newest accuracy by `MODEL READING`, means where there are any, else those of a single seed."""
    return {row.case.partition(" seed ")[0]: row for row in newest(rows) if row.what == "acc"}


def draw(name: str, rows: list[Row], out: Path) -> None:
    from matplotlib import pyplot

    found = readings(rows)
    student = {case.partition(" ")[2]: row for case, row in found.items() if case.startswith("student ")}
    counts = sorted(int(reading[2:]) for reading in student if reading.startswith("k="))
    labels = [f"k={count}" for count in counts] + ["full"]
    values = [student[label].value for label in labels]
    matplotlib.rcParams |= {"svg.hashsalt": name, "font.family": "sans-serif", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2))
    axes.plot(range(len(labels)), values, color=LINE, marker="o", linewidth=2, label="student")
    for case, style in (("teacher full", "--"), ("teacher blind", ":")):
        if case in found:
            axes.axhline(found[case].value, color=INK, linestyle=style, linewidth=1)
            where = "teacher, full vision" if case.endswith("full") else "without the image"
            axes.annotate(f"{where} {found[case].value:.2f} %", (0, found[case].value), (0, -14), color=INK,
                          textcoords="offset points", fontsize=9)  # fmt: skip
    for place, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (place, value), (0, 7), textcoords="offset points", ha="center", color=LINE)
    axes.set_xticks(range(len(labels)), [label if label != "full" else "all 16" for label in labels])
    axes.set_xlabel("tokens an image is read as", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_ylim(50, 104)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, bbox_inches="tight", transparent=False, metadata={"Date": None})


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python -m bench.picture BENCH")
    name = arguments[0]
    rows = read(f"{name}_seeds") if not (ROOT / "bench/results" / f"{name}.jsonl").exists() else read(name)
    out = ROOT / "docs" / "images" / f"{name}.svg"
    draw(name, rows, out)
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
