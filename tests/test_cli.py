"""The command line: help, exit codes, and the launchers' extra argument. Each test runs the real program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = [
    "train", "distill", "cache", "eval", "release", "chat", "compress", "serve", "answer", "select", "compete",
    "evolve", "programs", "judge", "report", "demo", "doctor", "assets", "schema",
]  # fmt: skip
CONFIG = """\
student:
  vision: {source: "timm:resnet18"}
  language: {source: "hf:org/model"}
data:
  mixture: [{source: easyvqa}]
stages:
  - {name: align, steps: 5}
"""


def mmkd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "mmkd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_help_lists_every_job():
    result = mmkd("--help")
    assert result.returncode == 0
    assert re.findall(r"^  ([a-z]+)  ", result.stdout, re.MULTILINE) == JOBS


def test_every_option_and_argument_of_every_job_has_help():
    import typer.main

    from mmkd.cli import app

    group = typer.main.get_command(app)
    assert sorted(group.commands) == sorted(JOBS)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_help_and_schema_do_not_wait_for_torch():
    code = (
        "import sys; from mmkd.cli import main; sys.argv = ['mmkd', 'schema']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'deepspeed', 'numpy'} & set(sys.modules); sys.exit(str(slow) if slow else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["title"] == "Config"


def test_a_users_error_is_its_text_on_stderr_and_exit_code_2(tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG + "run: {sed: 1}\n")
    result = mmkd("train", "x.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "config: run.sed is not a field of RunSection. Did you mean seed? (x.yaml:8)\n"
    assert result.stdout == ""


def test_an_override_with_a_negative_index_and_a_dotted_path_reaches_the_config(tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    result = mmkd("train", "x.yaml", "stages[-1].stepz=3", "--resume", cwd=tmp_path)
    assert result.returncode == 2
    assert "stages[0].stepz" in result.stderr or "stages[-1].stepz" in result.stderr
    assert "Did you mean steps? (override stages[-1].stepz=3)" in result.stderr


def test_distill_without_a_teacher_says_what_to_add(tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    result = mmkd("distill", "x.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "teacher is missing; distill needs one" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=1"])
def test_the_launchers_local_rank_before_the_job_is_ignored(flag, tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    result = mmkd(flag, "distill", "x.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "distill needs one" in result.stderr


def test_wrong_token_counts_are_named(tmp_path):
    result = mmkd("eval", "nowhere", "--tokens", "1,0,full")
    assert result.returncode == 2
    assert "--tokens has '0'; allowed: whole numbers from 1 and the word full" in result.stderr


def test_the_schema_can_be_written_to_a_file(tmp_path):
    file = tmp_path / "new" / "schema.json"
    result = mmkd("schema", "--out", str(file))
    assert result.returncode == 0
    assert json.loads(file.read_text())["properties"]["student"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["deepspeed.launcher.runner", "--num_gpus", "2", "--module"],
        ["torch.distributed.run", "--nproc_per_node", "2", "-m"],
    ],
    ids=["deepspeed", "torchrun"],
)
def test_the_job_starts_under_a_launcher(launcher, tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    result = subprocess.run(
        [sys.executable, "-m", *launcher, "mmkd", "distill", "x.yaml"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"DS_ACCELERATOR": "cpu"}, check=False,
    )  # fmt: skip
    # A rank came as far as reading the config. The launcher may have ended the other one for it before that one did;
    # more is tested where training is.
    assert result.returncode != 0
    assert "teacher is missing; distill needs one" in result.stdout + result.stderr
