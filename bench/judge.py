"""How far a judge of our own can be trusted: the demo's teacher, taught to grade, against labels (docs/synthesis.md).

    python -m bench.judge runs/judge --start runs/demo/teacher/model

For each seed: wrong answers are drawn and records written (configs/demo/judge.yaml), a judge is trained on them
(configs/demo/judge-train.yaml), and grades the answers about held-out pictures, by the expectation over its digits and
by the digit as said. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.rows import RESULTS, Row, append, config_hash, surroundings, with_overrides
from bench.runs import trained
from mmkd.config.judge_schema import JudgeConfig
from mmkd.config.load import load_as
from mmkd.synthesis.judge_jobs import Trust, judge_calibration, judge_records

READINGS = {"expected grade": True, "grade as said": False}


def of_seed(asked: argparse.Namespace, seed: int) -> dict[str, Trust]:
    """What both readings of one seed's judge are worth."""
    out = asked.out / f"seed-{seed}"
    settings = [f"out={out}", f"seed={seed}", *asked.judge]
    if not (out / "records.jsonl").exists():
        judge_records(load_as("demo/judge", settings, JudgeConfig))
    records = f"data.mixture=[{{source: jsonl, path: {out / 'records.jsonl'}}}]"
    overrides = [f"student.init={asked.start}", records, *asked.training]
    run = trained("train", "demo/judge-train", out / "run", seed, overrides, asked.ranks)
    model = [f"model.vlm.model={run / 'model'}"]
    return {
        name: judge_calibration(
            load_as("demo/judge", [*settings, *model, f"expected={str(expected).lower()}"], JudgeConfig)
        )
        for name, expected in READINGS.items()
    }


def rows_of(found: dict[int, dict[str, Trust]], command: str, digest: str) -> list[Row]:
    """Means over seeds."""
    around, seeds, rows = surroundings(), tuple(found), []
    for name in READINGS:
        trusts = [found[seed][name] for seed in seeds]
        figures = {
            ("kendall", "tau-b"): [one.calibration.tau for one in trusts],
            ("agreement", "%"): [100 * one.calibration.agreement for one in trusts],
            ("kappa", "kappa"): [one.calibration.kappa for one in trusts],
            ("preferred", "% of pairs"): [100 * one.preferred for one in trusts],
            ("unscored", "answers"): [one.calibration.unscored for one in trusts],
            ("answers", "answers"): [one.calibration.items for one in trusts],
        }
        for (what, unit), values in figures.items():
            spread = statistics.stdev(values) if len(values) > 1 else None
            mean = statistics.fmean(values)
            rows.append(Row("judge", f"{what}@{name}", mean, unit, seeds, spread, "labels", command, digest, **around))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--start", required=True, help="model folder that every judge starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--judge", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of demo/judge")
    parser.add_argument("--training", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of demo/judge-train")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a training")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    asked = parser.parse_args()
    found = {seed: of_seed(asked, seed) for seed in asked.seeds}
    rows = rows_of(
        found,
        with_overrides(
            f"python -m bench.judge {asked.out} --start {asked.start}", judge=asked.judge, training=asked.training
        ),
        config_hash({"judge": asked.judge, "training": asked.training}),
    )
    append(rows, asked.results)
    for row in rows:
        print(f"{row.metric:<28} {row.value:>10,.3f} {row.unit}" + (f" ± {row.spread:.2g}" if row.spread else ""))


if __name__ == "__main__":
    main()
