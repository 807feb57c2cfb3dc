"""What docs/synthesis.md and the command line say works."""

from __future__ import annotations

import re

import pytest
import yaml
from typer.testing import CliRunner

from mmkd.cli import app
from mmkd.config.judge_schema import JudgeConfig
from mmkd.config.load import load_as, load_config
from mmkd.config.synthesis_schema import AnswerConfig, EndpointSection, ModelSection, SelectConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.selection.registry import SELECTORS, selector


@pytest.fixture
def page(root) -> str:
    return (root / "docs" / "synthesis.md").read_text()


def test_the_configs_of_the_page_are_configs(page, root, tmp_path):
    page += (root / "docs" / "scale.md").read_text()
    shapes = {"answer.yaml": AnswerConfig, "select.yaml": SelectConfig, "judge.yaml": JudgeConfig}
    found = 0
    for text in re.findall(r"```yaml\n(# (?:answer|select|judge)\.yaml\n.*?)```", page, re.DOTALL):
        name = text.split()[1]
        (tmp_path / name).write_text(text)
        config = load_as(tmp_path / name, [], shapes[name])
        found += 1
        if isinstance(config, SelectConfig):
            assert all(selector(section.name) for section in config.select)
    assert found == 4
    assert load_as("demo/judge", [], JudgeConfig).out in load_config("demo/judge-train").run.dir
    kinds = page.split("model:\n", 1)[1].split("```")[0]
    lines = re.findall(r"^  (?:# )?(\w+: \{.*?\})", kinds, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        ModelSection.model_validate(yaml.safe_load(line))


def test_the_page_names_every_selector_and_every_option_of_an_endpoint(page):
    assert all(f"`{name}`" in page for name in SELECTORS)
    options = page.split("An endpoint further takes")[1].split("\n\n")[0]
    assert all(name in options for name in set(EndpointSection.model_fields) - {"url", "model"})


def test_the_command_line_answers_and_selects(served, picture, tmp_path):
    rows = [
        Record(f"r{n}", [Turn("user", f"What {n}?"), Turn("assistant", "old")], [picture(n)], "t") for n in range(6)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "answer.yaml").write_text(
        f"model: {{endpoint: {{url: '{served}', model: tiny}}}}\n"
        f"data: [{{source: jsonl, path: {tmp_path}/rows.jsonl}}]\n"
        f"out: {tmp_path}/answers\nmay_be_cut: true\n"
    )
    (tmp_path / "select.yaml").write_text(
        f"data: [{{source: jsonl, path: {tmp_path}/answers/records.jsonl}}]\n"
        f"select: [{{name: balance, most: 3}}]\nout: {tmp_path}/selected\n"
    )
    run = CliRunner().invoke
    said = run(app, ["answer", str(tmp_path / "answer.yaml"), "sampling.max_tokens=6"], catch_exceptions=False)
    assert "records whole" in said.output
    assert all(record.turns[1].text != "old" for record in jsonl(str(tmp_path / "answers" / "records.jsonl")))
    said = run(app, ["select", str(tmp_path / "select.yaml")], catch_exceptions=False)
    assert str(tmp_path / "selected" / "records.jsonl") in said.output
    assert len(jsonl(str(tmp_path / "selected" / "records.jsonl"))) == 3
