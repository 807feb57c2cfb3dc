"""Line charts as plain SVG. Colours and fonts come from the page's style, so that one chart serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 32

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        style: a class of the page's style: "s0", "s1", ...
        marks: draw a dot at each point.
    """

    name: str
    points: Sequence[Point]
    style: str
    marks: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart with its heading; the svg has no text that is not escaped."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]  # name, style


def plain(value: float) -> str:
    """Short: 0.0003, 0.25, 12, 3.4k."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def amount(count: int) -> str:
    """4,608 or 42.52 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    show: Callable[[float], str] = plain,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_name: str = "step",
    borders: Sequence[tuple[float, str]] = (),
    rules: Sequence[tuple[float, str, str]] = (),
    from_zero: bool = False,
) -> Chart:
    """A chart of one measure.

    Args:
        show: formats a value of the y axis.
        x_ticks: (x, label); round numbers by default.
        borders: (x, name) of vertical lines, e.g. where a stage starts.
        rules: (y, name, style) of horizontal lines, e.g. what a teacher reaches.
        from_zero: start the y axis at 0. A wide range of positive values gets a logarithmic axis.
    """
    points = [point for line in lines for point in line.points]
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + [y for y, _, _ in rules]
    logarithmic = not from_zero and min(ys) > 0 and max(ys) / min(ys) > 50
    low, high = _range(ys, logarithmic, from_zero)
    first, last = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    if x_ticks is not None:  # leave air beside the first and last label
        first, last = first - 0.4, last + 0.4

    def place_x(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        share = (math.log(y / low) / math.log(high / low)) if logarithmic else (y - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts: list[str] = []
    for tick in _log_ticks(low, high) if logarithmic else ticks(low, high):
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(show(tick))}</text>')
    for x, label in x_ticks if x_ticks is not None else [(t, plain(t)) for t in ticks(first, last)]:
        parts.append(
            f'<text x="{place_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end" class="axis">{escape(x_name)}</text>')
    for x, name in borders:
        at = place_x(x)
        parts.append(f'<line class="border" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at + 4:.1f}" y="{TOP + 9}" class="axis">{escape(name)}</text>')
    for y, name, style in rules:
        at = place_y(y)
        parts.append(
            f'<line class="rule {style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}">'
            f"<title>{escape(name)}: {escape(show(y))}</title></line>"
        )
    for line in lines:
        parts += _drawn(line, place_x, place_y, show)
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    legend = [(line.name, line.style) for line in lines] + [(name, style) for _, name, style in rules]
    return Chart(title, Markup(svg), legend if len(legend) > 1 else [])


def _drawn(
    line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float], show: Callable[[float], str]
) -> list[str]:
    placed = [(place_x(x), place_y(y), x, y) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in placed)
    parts = [f'<polyline class="line {line.style}" points="{path}"/>'] if len(placed) > 1 else []
    if line.marks or len(placed) == 1:
        parts += [
            f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(line.name)}: {escape(show(value))}</title></circle>"
            for x, y, _, value in placed
        ]
    return parts


def _range(values: Sequence[float], logarithmic: bool, from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.15, high * 1.15
    if from_zero and low >= 0:
        return 0.0, high * 1.1 or 1.0
    air = 0.08 * (high - low) or 0.1 * abs(high) or 0.5
    return (0.0 if 0 <= low < air else low - air), high + air


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high."""
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**e for e in exponents for factor in (1, 3)]
    found = [tick for tick in found if low <= tick <= high]
    return found if len(found) <= 7 else [tick for tick in found if math.log10(tick) % 1 < 1e-9]
