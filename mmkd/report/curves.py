"""Which charts a run gets: how it trained, and what it scores by token count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmkd.report.plots import Chart, Line, line_chart, percent, plain
from mmkd.report.run_folder import Metric, Scored, reading_name, reading_order

# Name in metrics.jsonl, heading, format; in this order. Others are not drawn.
TRAINING: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "Loss", plain),
    ("ce", "Cross-entropy of the answers", plain),
    ("kl", "KL to the teacher", plain),
    ("reverse_kl", "Reverse KL to the teacher", plain),
    ("js", "Jensen-Shannon divergence from the teacher", plain),
    ("skewed_kl", "Skewed KL to the teacher", plain),
    ("tv", "Total variation from the teacher", plain),
    ("taid", "TAID: cross-entropy to the moving target", plain),
    ("taid_t", "TAID: share of the teacher in the target, t", plain),
    ("accuracy", "Answer tokens predicted right", percent),
    ("agree", "Top-1 agreement with the teacher", percent),
    ("attention_error", "What attention reads: relative error", plain),
    ("learning_rate", "Learning rate", plain),
    ("grad_norm", "Gradient norm", plain),
    ("tokens_per_second", "Text tokens a second", plain),
)
SHARES = (("padding", "padding"), ("data_wait", "wait for data"))
IMAGE_SHARES = (("image_share_teacher", "teacher"), ("image_share_student", "student"))


def style_of(reading: str) -> str:
    """The colour of a way of reading: shades for 1, 2, 4, 8 tokens and more, another hue for full vision."""
    if not reading.isdecimal():
        return "full"
    return f"k{min(4, int(reading).bit_length() - 1)}"


def training_charts(metrics: Sequence[Metric]) -> list[Chart]:
    """A chart for each measure that the run logged; a line for each way of reading where it has several."""
    if not metrics:
        return []
    borders = _borders(metrics)
    charts = []
    for name, title, show in TRAINING:
        lines = _by_reading(metrics, name) or _plain_line(metrics, name, title, "s0")
        if lines:
            charts.append(line_chart(title, lines, show=show, borders=borders))
    for title, names in (
        ("Share of attention that goes to the image", IMAGE_SHARES),
        ("Time and tokens that teach nothing", SHARES),
    ):
        lines = [line for i, (name, label) in enumerate(names) for line in _plain_line(metrics, name, label, f"s{i}")]
        if lines:
            charts.append(line_chart(title, lines, show=percent, borders=borders, from_zero=True))
    return charts


def _by_reading(metrics: Sequence[Metric], name: str) -> list[Line]:
    """Lines of `k1/NAME`, `full/NAME` and so on."""
    readings = {key.split("/")[0] for row in metrics for key in row.values if key.partition("/")[2] == name}
    lines = []
    for prefix in sorted(readings, key=lambda text: reading_order(text.removeprefix("k"))):
        reading = prefix.removeprefix("k")
        found = [
            (float(row.step), row.values[f"{prefix}/{name}"]) for row in metrics if f"{prefix}/{name}" in row.values
        ]
        lines.append(Line(reading_name(reading), found, style_of(reading)))
    return lines


def _plain_line(metrics: Sequence[Metric], name: str, label: str, style: str) -> list[Line]:
    found = [(float(row.step), row.values[name]) for row in metrics if name in row.values]
    return [Line(label, found, style)] if found else []


def _borders(metrics: Sequence[Metric]) -> list[tuple[float, str]]:
    stages: dict[str, int] = {}
    for row in metrics:
        stages.setdefault(row.stage, row.step)
    if len(stages) < 2:
        return []
    return [(float(step), stage) for stage, step in stages.items()]


def score_charts(scored: Sequence[Scored], teacher: Scored | None) -> list[Chart]:
    """Accuracy and time of one suite by token count; the teacher's and the blind score as level lines."""
    read = [one for one in scored if one.reading != "blind"]
    ticks = [(float(i), reading_name(one.reading)) for i, one in enumerate(read)]
    charts = []
    for metric, title, show, from_zero in (
        (headline_metric(read), "Accuracy by tokens an image is read as", percent, False),
        ("seconds_per_question", "Time for a question (all of it, lmms-eval)", milliseconds, True),
    ):
        points = [(float(i), one.scores[metric], one.reading) for i, one in enumerate(read) if metric in one.scores]
        if not points:
            continue
        rules = []
        if teacher is not None and metric in teacher.scores:
            rules.append((teacher.scores[metric], "teacher, full vision", "teacher"))
        compressed = [(x, y) for x, y, reading in points if reading != "full"]
        whole = [(x, y) for x, y, reading in points if reading == "full"]
        lines = [Line("student, compressed", compressed, "k0", True)] if compressed else []
        lines += [Line("student, full vision", whole, "full", True)] if whole else []
        charts.append(line_chart(title, lines, show=show, x_ticks=ticks, x_name="", rules=rules, from_zero=from_zero))
    return charts


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"


def headline_metric(scored: Sequence[Scored]) -> str:
    """The metric that stands for a suite: acc, else its first."""
    names = list(dict.fromkeys(name for one in scored for name in one.scores))
    for name in names:
        if name == "acc" or name.endswith("/acc"):
            return name
    return names[0] if names else "acc"
