"""What tests that pass tell of themselves, by pytest's `record_property`: for benches whose figures tests count."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from bench.rows import ROOT
from mmkd.errors import DataError


def told(tests: str, around: Mapping[str, str]) -> list[tuple[str, str, dict[str, float]]]:
    """(module, test, its properties) of each test.

    Args:
        tests: a file, a folder or one test, as pytest takes it; around: further environment.

    Raises: DataError where one does not pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={report}", tests]
        env = {**os.environ, **around}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"{tests} did not pass:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return [
            (test.attrib["classname"], test.attrib["name"], {
                one.attrib["name"]: float(one.attrib["value"]) for one in test.iter("property")
            })
            for test in ElementTree.parse(report).iter("testcase")
        ]  # fmt: skip
