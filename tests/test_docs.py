"""What README and docs tell a reader to type exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mmkd.cli import app
from mmkd.config.load import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `mmkd` on every line of a page that is a command line, indented by four."""
    for line in page.read_text().splitlines():
        found = re.match(r" {4}(?:deepspeed .*--module )?mmkd ([a-z].*)", line)
        if found:
            yield found[1].split("#")[0].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_names_a_command_and_options_that_there_are(page):
    jobs = typer.main.get_command(app).commands
    for words in commands(page):
        command = jobs[words[0]]
        if words[0] == "programs":
            command = command.commands.get(words[1], command.commands["run"])
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, words


def test_the_readmes_own_model_is_a_config_and_its_run_is_what_it_scores(tmp_path):
    text = (ROOT / "README.md").read_text()
    (tmp_path / "my.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    config = load_config(tmp_path / "my.yaml")
    assert max(count for count in config.stages[0].read if count != "full") == config.student.voco.tokens
    assert f"mmkd eval {config.run.dir} " in text
