"""What `mmkd eval` takes from a run folder, and what from its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmkd.cli import app
from mmkd.errors import ConfigError
from mmkd.evaluate.job import job_of

CONFIG = """\
student: {init: anywhere}
data: {mixture: [{source: easyvqa}]}
stages: [{name: learn, steps: 1}]
evaluate: {suite: official, tokens: [full, 4, 1], limit: 20, batch_size: 8, blind: true}
"""


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(CONFIG)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    return tmp_path / "run"


def test_a_folder_or_a_hub_id_is_scored_in_full_vision_on_easyvqa_and_nothing_is_kept(run):
    for model in (str(run / "model"), "some/hub-id"):
        job = job_of(model)
        assert (job.model, job.asked.suite, job.asked.tokens, job.out) == (model, "easyvqa", ["full"], None)


def test_a_run_without_a_model_says_how_to_get_one(run):
    (run / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match="without a model yet; finish it with --resume"):
        job_of(str(run))


def test_a_run_of_a_classifier_is_told_where_its_scores_are(run):
    section = 'kind: vision\nrun: {dir: run}\nstudent: {model: "timm:test_resnet"}\nrecipe: {steps: 1}\n'
    (run / "config.yaml").write_text(section + "data: {train: {source: easyvqa}}\n")
    with pytest.raises(ConfigError, match=r"is a run of kind: vision: .*scores are in .*scores\.json"):
        job_of(str(run))


def test_a_run_is_scored_as_its_config_says_unless_an_option_says_other(run, monkeypatch):
    calls = []
    monkeypatch.setattr("mmkd.evaluate.suite.evaluate", lambda **asked: calls.append(asked) or {})
    for options in ([], ["--suite", "easyvqa", "--tokens", "2", "--no-blind", "--limit", "5", "--out", "elsewhere"]):
        result = CliRunner().invoke(app, ["eval", str(run), *options])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {}
    model = {"model": str(run / "model"), "batch_size": 8}
    assert calls == [
        model | {"suite": "official", "tokens": ["full", 4, 1], "blind": True, "limit": 20, "out": run / "eval"},
        model | {"suite": "easyvqa", "tokens": [2], "blind": False, "limit": 5, "out": Path("elsewhere")},
    ]
