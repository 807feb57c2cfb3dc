"""A figure of the docs is a row: what was measured, how well, with what, where and when. Files are only appended to."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmkd.errors import DataError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("mmkd", "torch", "transformers", "deepspeed", "lmms_eval")
MEASURED = ("mmkd", "adapters", "bench", "configs", "eval_suites")  # what a figure depends on


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        bench: name of the file it stands in.
        metric: `what@case`, e.g. `kv_bytes@k=1`; or just `what`.
        value: the figure; a mean where there are several seeds.
        unit: e.g. "%", "bytes", "ms".
        seeds: the seeds it was measured with.
        spread: standard deviation over seeds (or over repeats, where a time was measured); None for a count, or
            one seed. Two seeds or more need it.
        against: what it is compared with; None where it stands alone.
        command: gives the figure again.
        config_hash: of the resolved config, see `config_hash`.
        commit: of the code, with "-dirty" where files it depends on differed.
        versions: of packages. machine: processor, cores, device. date: ISO.
    """

    bench: str
    metric: str
    value: float
    unit: str
    seeds: tuple[int, ...]
    spread: float | None
    against: str | None
    command: str
    config_hash: str
    commit: str
    versions: dict[str, str]
    machine: str
    date: str

    @property
    def what(self) -> str:
        return self.metric.partition("@")[0]

    @property
    def case(self) -> str:
        return self.metric.partition("@")[2]


FIELDS = tuple(field.name for field in fields(Row))


def row_from(values: Any, at: str) -> Row:
    """A checked row.

    Args:
        at: where it stands, for messages.

    Raises: DataError naming every missing, unknown or unusable field.
    """
    if not isinstance(values, dict):
        raise DataError(f"{at}: a row is an object with the fields {', '.join(FIELDS)}, not {type(values).__name__}.")
    problems = [f"{name} is missing" for name in FIELDS if name not in values]
    problems += [f"{name} is not a field" for name in values if name not in FIELDS]
    if not problems:
        problems = [problem for name in FIELDS if (problem := _problem(name, values))]
    if problems:
        raise DataError(f"{at}: {'; '.join(problems)}. A row has {', '.join(FIELDS)} (see bench/rows.py).")
    return Row(**values | {"seeds": tuple(values["seeds"])})


def _problem(name: str, values: dict[str, Any]) -> str | None:
    value = values[name]
    if name == "value":
        return None if _is_number(value) else f"value {value!r} is not a finite number"
    if name == "spread":
        if value is None:
            several = isinstance(values["seeds"], (list, tuple)) and len(values["seeds"]) > 1
            return "spread is null although there are several seeds" if several else None
        return None if _is_number(value) and value >= 0 else f"spread {value!r} is neither null nor a number from 0"
    if name == "seeds":
        whole = isinstance(value, (list, tuple)) and value and all(type(seed) is int for seed in value)
        return None if whole else f"seeds {value!r} is not a list of whole numbers"
    if name == "versions":
        whole = isinstance(value, dict) and value and all(isinstance(v, str) and v for v in value.values())
        return None if whole else f"versions {value!r} does not name packages and their versions"
    if name == "against" and value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        return f"{name} {value!r} is not a text"
    if name == "bench" and not re.fullmatch(r"[a-z0-9_]+", value):
        return f"bench {value!r} is not a file name of small letters, digits and _"
    if name == "config_hash" and not re.fullmatch(r"[0-9a-f]{12,64}", value):
        return f"config_hash {value!r} is not a hexadecimal digest"
    if name == "commit" and not re.fullmatch(r"[0-9a-f]{40}(-dirty)?", value):
        return f"commit {value!r} is not a full commit"
    if name == "date":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return f"date {value!r} is not an ISO date"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def with_overrides(command: str, **overrides: Sequence[str]) -> str:
    """`command` and what each of these options was given, quoted for a shell."""
    given = (shlex.join([f"--{option}", *values]) for option, values in overrides.items() if values)
    return " ".join([command, *given])


def append(rows: Sequence[Row], results: Path = RESULTS) -> None:
    """Append rows to their files. All are checked before one is written. Raises DataError."""
    lines: dict[str, str] = {}
    for number, row in enumerate(rows):
        checked = row_from(asdict(row), f"row {number + 1} of {len(rows)} ({row.metric})")
        lines[row.bench] = lines.get(row.bench, "") + json.dumps(asdict(checked), ensure_ascii=False) + "\n"
    results.mkdir(parents=True, exist_ok=True)
    for name, text in lines.items():
        path = results / f"{name}.jsonl"
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            raise DataError(f"{path.name}: its last line is torn; mend it before anything is appended.")
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def read(name: str, results: Path = RESULTS) -> list[Row]:
    """Every row of a bench, oldest first. Raises DataError where there is none, or one is not whole."""
    path = results / f"{name}.jsonl"
    if not path.is_file():
        known = sorted(file.stem for file in results.glob("*.jsonl"))
        raise DataError(f"bench {name!r} has no rows; there are {', '.join(known) or 'none'}.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name}:{number}: not JSON ({error}).") from error
        rows.append(row_from(values, f"{path.name}:{number}"))
        if rows[-1].bench != name:
            raise DataError(f"{path.name}:{number}: the row belongs to bench {rows[-1].bench!r}.")
    return rows


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each metric, in the order in which metrics first appear."""
    return list({row.metric: row for row in rows}.values())


# --- what surrounds a figure ------------------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """commit, versions, machine and date, for `Row(..., **surroundings())`."""
    commit = _git("rev-parse", "HEAD")
    dirty = _git(
        "status", "--porcelain", "--", *(name for name in MEASURED if (ROOT / name).exists()), ":!bench/results"
    )
    return {
        "commit": commit + ("-dirty" if dirty else ""),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_device()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"a figure needs the commit it was measured at: git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def config_hash(*configs: Any) -> str:
    """Of resolved configs (pydantic models or plain data), whatever the order of their keys."""
    plain = [config.model_dump(mode="json") if hasattr(config, "model_dump") else config for config in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


# --- comparing over seeds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Differences of two methods measured on the same seeds.

    Attributes:
        mean, spread: of the differences, ours - theirs; spread is their standard deviation (n - 1).
        low, high: 95 % confidence interval of the mean (Student's t).
    """

    mean: float
    spread: float
    low: float
    high: float
    seeds: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves zero out, with three seeds or more."""
        return self.seeds >= 3 and (self.low > 0 or self.high < 0)


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Paired:
    """Compare scores by seed. Raises DataError unless both have the same two seeds or more."""
    if ours.keys() != theirs.keys() or len(ours) < 2:
        raise DataError(
            f"a paired comparison needs the same seeds on both sides, two or more; found {sorted(ours)} and "
            f"{sorted(theirs)}."
        )
    from scipy.stats import t

    differences = [ours[seed] - theirs[seed] for seed in sorted(ours)]
    count = len(differences)
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    reach = float(t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    return Paired(mean, spread, mean - reach, mean + reach, count)
