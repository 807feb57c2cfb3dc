"""Steps done once, and trainings started as processes."""

from __future__ import annotations

import sys

import pytest

from mmkd.errors import TrainingError
from mmkd.launch import launch
from mmkd.steps import Steps


def test_a_step_that_ended_is_kept_and_one_that_failed_is_done_again(tmp_path):
    begun: list[str] = []

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Steps(tmp_path).run("one", fails, lambda: begun.append("first"))
    assert Steps(tmp_path).run("one", lambda: {"a": 1}, lambda: begun.append("second")) == {"a": 1}
    later = Steps(tmp_path)
    assert later.run("one", fails, lambda: begun.append("third")) == {"a": 1}
    assert begun == ["first", "second"]
    assert later.seconds["one"] >= 0


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_is_there_goes_on_and_a_failed_one_is_an_error(tmp_path, monkeypatch, code):
    launcher, run = tmp_path / "deepspeed", tmp_path / "run"
    launcher.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\nexit {code}\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    run.mkdir()
    for resumed in (False, True):
        if code:
            with pytest.raises(TrainingError, match=r"train in .*run stopped"):
                launch("train", "a.yaml", run, ["run.seed=1"], ranks=3)
        else:
            launch("train", "a.yaml", run, ["run.seed=1"], ranks=3)
        said = (tmp_path / "said").read_text().split()
        assert said[:2] == ["--num_gpus", "3"]
        tail = ["train", "a.yaml", f"run.dir={run}", "run.seed=1"]
        assert said[said.index("mmkd") + 1 :] == tail + ["--resume"] * resumed
        (run / "config.yaml").write_text("")
