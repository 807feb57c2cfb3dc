"""How far each objective is from its naive reference, in value and gradient: `python -m bench.exactness`.

Runs the tests of the objectives, which hold the references, and reads what they compared: the largest error of any
value or gradient, as a share of the largest entry of what is expected (of its norm, where one step in bf16 is held
against fp32). Tests of one file are one line; those that hold for every objective have a line for each.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from bench.passed import told
from bench.rows import RESULTS, Row, append, config_hash, surroundings

BENCH = "exactness"
TESTS = "tests/objectives"
NAMES = {"torch.float64": "fp64", "torch.float32": "fp32", "torch.bfloat16": "bf16"}


def compared(tests: str) -> dict[str, dict[str, float]]:
    """Figures by case. Raises DataError where a test does not pass."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for module, test, properties in told(tests, {}):
        of = found[case_of(module, test)]
        for key, value in properties.items():
            what, _, dtype = key.partition(" ")
            if dtype in NAMES:
                name = f"{what}_{NAMES[dtype]}"
                of[name] = max(of[name], value) if what == "error" else of[name] + value
    return found


def case_of(file: str, test: str) -> str:
    """`token losses`; of the tests for every objective `forward_kl, any cut` or `forward_kl, bf16`."""
    stem = file.rpartition(".")[2].removeprefix("test_").replace("_", " ")
    if stem != "every objective":
        return stem
    if "two_ranks" in test:
        return "every objective, two ranks"
    of = re.sub(r"-(True|False)$", "", test.partition("[")[2].rstrip("]"))
    return f"{of}, {'bf16' if 'bf16' in test else 'any cut'}"


def main(asked: argparse.Namespace) -> None:
    around = surroundings()
    rows = [
        Row(
            BENCH, f"{name}@{case}", value, "comparisons" if name.startswith("comparisons") else "relative", (0,), None,
            None, f"python -m bench.{BENCH}", config_hash({"tests": asked.tests}), **around,
        )
        for case, figures in compared(asked.tests).items()
        for name, value in figures.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{row.metric:<60} {row.value:.3g}")
    append(rows, asked.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=f"python -m bench.{BENCH}", description=__doc__.splitlines()[0])
    parser.add_argument("--tests", default=TESTS, help="files or folder of the tests")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    main(parser.parse_args())
