"""The demo's frame: its order, what it keeps, what it says. What its stages do is tested where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from mmkd import demo
from mmkd.errors import ConfigError


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """The stages' work, in the order in which it was done; a training leaves what the summary reads."""
    order: list[str] = []

    def launch(command: str, config: str, run: Path, overrides: list[str]) -> None:
        order.append(f"{command} {config} {' '.join(overrides)}")
        run.mkdir(parents=True, exist_ok=True)
        (run / "environment.json").write_text('{"commit": "c0ffee"}')

    def step(name: str, result: object):
        return lambda *_: order.append(name) or result

    read = {"acc": 0.5}
    scores = {"teacher": {"full": read, "blind": read}, "student": {"1": read, "full": read}}
    cost = {"kv_bytes": 4608, "prefill_flops": 1.5e8}
    monkeypatch.setattr(demo, "launch", launch)
    monkeypatch.setattr(demo, "_assets", step("assets", []))
    monkeypatch.setattr(demo, "_scores", step("scores", scores))
    monkeypatch.setattr(demo, "_costs", step("costs", {"1": cost, "full": cost}))
    monkeypatch.setattr(demo, "_release", step("release", {}))
    monkeypatch.setattr(demo, "_report", step("report", "page"))
    return order


def test_a_demo_runs_its_stages_in_order_and_writes_what_it_found(done, tmp_path, capsys):
    summary = demo.demo(seed=3, out=tmp_path / "demo")
    assert [line.split()[0] for line in done] == ["assets", "train", "distill", "scores", "costs", "release", "report"]
    assert done[1] == "train demo/teacher run.seed=3"
    assert f"teacher.model={tmp_path / 'demo' / 'teacher' / 'model'}" in done[2]
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {"scores", "costs", "seconds", "seed", "commit", "questions"} <= set(summary)
    assert set(summary["seconds"]) == set(demo.MINUTES)
    said = capsys.readouterr().out
    assert "[2/7] teacher · about 14 min left in all" in said
    assert "minutes: assets" in said


def test_a_demo_that_was_stopped_goes_on_where_it_stopped(done, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            demo.demo(out=tmp_path)
    assert len(done) == 3
    demo.demo(out=tmp_path)
    assert [line.split()[0] for line in done[3:]] == ["scores", "costs", "release", "report"]


def test_a_folder_with_another_demo_is_refused(done, tmp_path):
    demo.demo(out=tmp_path)
    with pytest.raises(ConfigError, match=r'"seed": 0.*and .*"seed": 1.* was asked for'):
        demo.demo(seed=1, out=tmp_path)


def test_the_table_has_a_row_for_each_reading_and_costs_of_the_student_only(done, tmp_path):
    console = Console(record=True, width=120)
    console.print(demo.table(demo.demo(out=tmp_path)))
    lines = [line for line in console.export_text().splitlines() if "50.0 %" in line]
    assert len(lines) == 4
    assert [line.count("4 KiB") for line in lines] == [0, 0, 1, 1]
