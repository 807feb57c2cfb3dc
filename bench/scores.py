"""Scores of trained runs as rows: one a seed as the runs come in, then means over seeds and paired differences.

    python -m bench.scores add demo_full teacher runs/demo-full/teacher     # RUN/eval/*.json -> demo_full_seeds.jsonl
    python -m bench.scores mean demo_full                                   # -> demo_full.jsonl
    python -m bench.scores minutes demo_full runs/demo-full/summary.json    # minutes of each stage
    python -m bench.scores compare objectives ce+kl ce                      # paired over seeds -> objectives.jsonl

Seeds may be added on different days and machines; each row says where it was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rows import PACKAGES, RESULTS, Row, append, config_hash, paired, read, surroundings
from mmkd.config.load import load_run
from mmkd.errors import DataError

HEADLINES = ("acc", "score", "top1")  # what a bench is about; a gain of these needs no name


def of_run(bench: str, case: str, run: Path, metric: str = "acc") -> list[Row]:
    """A row for each way in which the run was scored: `METRIC@CASE READING seed N`.

    Raises: DataError where the run has no scores, or was scored on several suites.
    """
    found = [json.loads(path.read_text()) for path in sorted((run / "eval").glob("*.json"))]
    suites = {one["suite"] for one in found}
    if len(suites) != 1:
        raise DataError(f"{run / 'eval'} holds scores of {len(suites)} suites; rows are made from exactly one.")
    rows = []
    for one in found:
        reading = "blind" if one["blind"] else "full" if one["tokens"] == "full" else f"k={one['tokens']}"
        limit = f" --limit {one['limit']}" if one["limit"] else ""
        command = f"mmkd eval {run / 'model'} --suite {one['suite']} --tokens {one['tokens']}{limit}"
        rows.append(seed_row(bench, f"{metric}@{case} {reading}", one["scores"][metric], run, command))
    return rows


def seed_row(bench: str, name: str, share: float, run: Path, command: str) -> Row:
    """The row `NAME seed N` of a trained run, N its seed; `share` is of one and becomes per cent."""
    config = load_run(str(run))
    made, around = json.loads((run / "environment.json").read_text()), surroundings()
    return Row(
        bench=f"{bench}_seeds",
        metric=f"{name} seed {config.run.seed}",
        value=100 * share,
        unit="%",
        seeds=(config.run.seed,),
        spread=None,
        against=None,
        command=command,
        config_hash=config_hash(config.model_dump(mode="json", exclude={"run"})),
        commit=made["commit"],
        versions={name: made["versions"].get(name, around["versions"][name]) for name in PACKAGES},
        machine=around["machine"],
        date=around["date"],
    )


def of_summary(bench: str, path: Path) -> list[Row]:
    """Minutes of each stage of a demo, and in all: `minutes@STAGE`."""
    summary = json.loads(path.read_text())
    around = surroundings()
    seconds = summary["seconds"] | {"in all": sum(summary["seconds"].values())}
    return [
        Row(
            bench=f"{bench}_minutes",
            metric=f"minutes@{stage}",
            value=value / 60,
            unit="min",
            seeds=(summary["seed"],),
            spread=None,
            against=None,
            command="mmkd demo" + " --full" * (summary["questions"] == "all"),
            config_hash=config_hash({"demo": bench}),
            commit=summary["commit"],
            versions={name: summary["versions"].get(name, around["versions"][name]) for name in PACKAGES},
            machine=around["machine"],
            date=around["date"],
        )
        for stage, value in seconds.items()
    ]


def by_case(bench: str, results: Path = RESULTS) -> dict[str, dict[int, Row]]:
    """The newest row of each seed, by `METRIC@CASE READING`."""
    found: dict[str, dict[int, Row]] = {}
    for row in read(f"{bench}_seeds", results):
        name, _, seed = row.metric.rpartition(" seed ")
        found.setdefault(name, {})[int(seed)] = row
    return found


def add_new(bench: str, rows: Sequence[Row], results: Path = RESULTS) -> None:
    """Append the rows `METRIC@CASE READING seed N` whose metric has no row of that seed yet."""
    known = (
        {row.metric for row in read(f"{bench}_seeds", results)} if (results / f"{bench}_seeds.jsonl").exists() else ()
    )
    append([row for row in rows if row.metric not in known], results)


def conclude(
    bench: str, pairs: Sequence[tuple[str, str]], metrics: Sequence[str] = ("acc",), results: Path = RESULTS
) -> None:
    """Append the mean over seeds of everything measured, and what the first of each pair gains over the second: `gain`,
    and of a metric `acc_KIND` `gain_KIND`.

    Raises: as `difference`.
    """
    rows = by_case(bench, results)
    append([mean(bench, name, found) for name, found in rows.items()], results)
    chosen = {name: found for name, found in rows.items() if name.partition("@")[0] in metrics}
    for ours, theirs in pairs:
        append(difference(bench, ours, theirs, chosen), results)


def mean(bench: str, name: str, rows: dict[int, Row]) -> Row:
    """Mean and standard deviation over seeds."""
    seeds = sorted(rows)
    values = [rows[seed].value for seed in seeds]
    return _row(
        bench,
        name,
        statistics.fmean(values),
        rows[seeds[-1]].unit,
        seeds,
        statistics.stdev(values) if len(values) > 1 else None,
        None,
        rows[seeds[-1]],
        f"python -m bench.scores mean {bench}",
    )


def difference(bench: str, ours: str, theirs: str, rows: dict[str, dict[int, Row]]) -> list[Row]:
    """ours - theirs, seed by seed, for every metric and reading that both have: `gain` of the headline, and of another
    `gain_METRIC`. Shares are compared in percentage points.

    Raises: DataError where they share no two seeds.
    """
    found = []
    for name, own in rows.items():
        metric, _, case = name.partition("@")
        label, _, reading = case.rpartition(" ")
        other = rows.get(f"{metric}@{theirs} {reading}", {})
        seeds = sorted(own.keys() & other.keys())
        if label != ours or len(seeds) < 2:
            continue
        result = paired({s: own[s].value for s in seeds}, {s: other[s].value for s in seeds})
        command = f"python -m bench.scores compare {bench} {ours} {theirs}"
        case = f"{ours} against {theirs}, {reading}"
        of = own[seeds[-1]]
        against, of_kind = f"{theirs} {reading}", "" if metric in HEADLINES else f"_{metric.removeprefix('acc_')}"
        unit = "points" if of.unit == "%" else of.unit
        figures = {"gain": (result.mean, result.spread), "gain_low": (result.low, 0.0), "gain_high": (result.high, 0.0)}
        for what, (value, spread) in figures.items():
            name = f"{what}{of_kind}@{case}"
            found.append(_row(bench, name, value, unit, seeds, spread, against, of, command))
    if not found:
        raise DataError(f"{bench}: {ours} and {theirs} share no two seeds with the same reading.")
    return found


def _row(
    bench: str,
    metric: str,
    value: float,
    unit: str,
    seeds: list[int],
    spread: float | None,
    against: str | None,
    of: Row,
    command: str,
) -> Row:
    around: dict[str, Any] = {n: getattr(of, n) for n in ("config_hash", "commit", "versions", "machine", "date")}
    return Row(bench, metric, value, unit, tuple(seeds), spread, against, command, **around)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scores", description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    add = jobs.add_parser("add", help="rows of one trained and scored run")
    add.add_argument("bench", help="name of the bench")
    add.add_argument("case", help="what the run stands for, e.g. teacher or ce+kl")
    add.add_argument("run", type=Path, help="run folder with eval/")
    minutes = jobs.add_parser("minutes", help="rows of a demo's stages")
    minutes.add_argument("bench", help="name of the bench")
    minutes.add_argument("summary", type=Path, help="summary.json of a demo")
    means = jobs.add_parser("mean", help="means over the seeds there are")
    means.add_argument("bench", help="name of the bench")
    compare = jobs.add_parser("compare", help="paired differences of two cases")
    for name in ("bench", "ours", "theirs"):
        compare.add_argument(name)
    asked = parser.parse_args(arguments)
    if asked.job == "add":
        rows = of_run(asked.bench, asked.case, asked.run)
    elif asked.job == "minutes":
        rows = of_summary(asked.bench, asked.summary)
    elif asked.job == "mean":
        rows = [mean(asked.bench, name, found) for name, found in by_case(asked.bench).items()]
    else:
        rows = difference(asked.bench, asked.ours, asked.theirs, by_case(asked.bench))
    append(rows)
    for row in rows:
        print(f"{row.metric:<36} {row.value:8.2f} {row.unit}  seeds {list(row.seeds)}")


if __name__ == "__main__":
    main(sys.argv[1:])
