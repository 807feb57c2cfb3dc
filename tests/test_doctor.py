"""mmkd doctor: what is there, what is missing, and the line that installs it."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from mmkd import doctor


def findings() -> dict[str, doctor.Finding]:
    return {finding.part: finding for finding in doctor.examine()}


def test_this_machine_has_what_is_essential():
    found = findings()
    assert [part for part, finding in found.items() if finding.essential and not finding.ok] == []
    assert {"python", "torch", "device", "bf16", "deepspeed", "deepspeed ops", "bitsandbytes", "lmms-eval"} <= set(
        found
    )
    assert {"hf", "open_clip", "timm"} <= set(found["vision adapters"].found.split(", "))
    assert {"gguf", "hf", "local"} <= set(found["language adapters"].found.split(", "))


def test_versions_are_those_installed():
    import torch

    assert findings()["torch"].found == torch.__version__


def test_ops_are_those_that_deepspeed_itself_can_build_here():
    able, _, unable = findings()["deepspeed ops"].found.partition("; not ")
    assert "cpu_adam" in able
    assert "cpu_adam" not in unable


def test_every_lacking_part_comes_with_something_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path))  # no assets
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler, no browser
    lacking = {part: finding for part, finding in findings().items() if not finding.ok}
    assert {"demo assets", "g++", "deepspeed ops", "browser"} <= set(lacking)
    assert all(finding.remedy for finding in lacking.values())
    assert lacking["g++"].remedy == "apt-get install g++"
    assert lacking["demo assets"].found == f"0 of 3 in {tmp_path}"
    assert not any(finding.essential for finding in lacking.values())


def test_the_table_prints_brackets_as_they_are_typed(monkeypatch):
    missing = doctor.Finding("peft", False, "not installed", "pip install -e '.[train]'")
    monkeypatch.setattr(doctor, "examine", lambda: [missing])
    out = io.StringIO()
    assert doctor.doctor(Console(file=out, width=200)) == 0
    assert "pip install -e '.[train]'" in out.getvalue()


def test_something_essential_missing_is_said_and_fails(monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("torch", False, "not installed", "pip", essential=True)]
    )
    out = io.StringIO()
    assert doctor.doctor(Console(file=out, width=200)) == 1
    assert "cannot run without: torch" in out.getvalue()


@pytest.mark.slow
def test_without_its_optional_packages_the_doctor_still_runs_and_names_them():
    hide = """
import importlib.metadata, importlib.util, sys
hidden = {"deepspeed", "bitsandbytes", "lmms_eval", "lmms-eval", "peft"}
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in hidden else real(name, *rest)
from mmkd import doctor
rows = {f.part: f for f in doctor.examine()}
for part in ("deepspeed", "bitsandbytes", "lmms-eval", "peft"):
    assert not rows[part].ok and rows[part].remedy.startswith("pip install"), part
assert "deepspeed ops" not in rows
"""
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
