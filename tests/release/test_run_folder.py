"""What a run folder says of the model in it."""

from __future__ import annotations

import json

import yaml

from mmkd.checkpoints import mark_complete
from mmkd.release.run_folder import RunFolder


def test_a_run_without_a_teachers_folder_takes_no_config_that_lies_where_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "run" / "model").mkdir(parents=True)
    mark_complete(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"teacher": {"kind": "shared", "model": None}}))
    (tmp_path / "config.json").write_text(json.dumps({"parts": {"language": {"source": "a stranger"}}}))
    monkeypatch.chdir(tmp_path)
    assert RunFolder.read(tmp_path / "run").teacher == {}
