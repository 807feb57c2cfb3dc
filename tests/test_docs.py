"""What README and docs tell a reader to type exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mmkd.cli import app
from mmkd.config.kinds import KINDS
from mmkd.config.load import load_as, load_config
from mmkd.config.schema import Config
from mmkd.config.vision_schema import VisionConfig
from mmkd.data import sources
from mmkd.errors import ConfigError
from mmkd.objectives import build, names, options
from mmkd.vision_distill.checks import check_vision
from mmkd.vision_distill.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a snippet leaves out, by kind of config: it shows a part of one.
WRITER = {"language": {"source": "gguf:smollm2-135m"}}
ROWS = [{"source": "easyvqa"}]
REST: dict[str, dict[str, Any]] = {
    "train": {
        "student": {"init": "runs/x/model"}, "teacher": {"model": "runs/x/model"}, "data": {"mixture": ROWS},
        "stages": [{"name": "tune", "steps": 1}],
    },
    "vision": {
        "kind": "vision", "student": {"model": "timm:resnet18"}, "teacher": {"model": "timm:resnet18"},
        "data": {"train": {"source": "digits"}}, "recipe": {"steps": 1},
    },
    "answer": {"model": WRITER, "data": ROWS, "out": "runs/x"},
    "select": {"data": ROWS, "select": [{"name": "balance", "most": 1}], "out": "runs/x"},
    "compete": {
        "out": "runs/x", "start": "runs/x/model", "training": {"config": "round.yaml"}, "pool": ROWS, "held_out": ROWS,
        "teacher": {"vlm": {"model": "runs/x/model"}}, "augment": {"name": "grounded"},
    },
    "evolve": {"data": ROWS, "out": "runs/x", "blind": None},
    "programs": {"writer": WRITER, "data": ROWS, "out": "runs/x"},
    "judge": {"data": ROWS, "out": "runs/x"},
}  # fmt: skip


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line at which it begins."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: block.start()].count("\n") + 2, block[1]) for block in found]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_of_a_page_is_a_config_or_a_part_of_one(page, tmp_path):
    """Its own keys, with what is missing put in; as it is where that makes a whole config."""
    for line, text in blocks(page, "yaml"):
        if named := re.match(r"# (\w+\.yaml)\n", text):
            (tmp_path / named[1]).write_text(text)  # later ones may extend it
        wrong = []
        (tmp_path / "snippet.yaml").write_text(text if "extends:" in text else f"extends: rest.yaml\n{text}")
        own = set(yaml.safe_load(text))
        for (kind, rest), beside in itertools.product(REST.items(), (own, own & {"teacher"}, set())):
            (tmp_path / "rest.yaml").write_text(yaml.safe_dump({k: v for k, v in rest.items() if k not in beside}))
            try:
                check_registries(load_as(tmp_path / "snippet.yaml", [], KINDS[kind]))
                break
            except ConfigError as error:
                wrong.append(f"{kind}: {error}")
        else:
            pytest.fail(f"{page.name}:{line} is no config of any kind; nearest is {min(wrong, key=len)}")


def check_registries(config: Any) -> None:
    """Refuse what the schema leaves open: objectives, sources, and their options. Raises ConfigError."""
    if isinstance(config, VisionConfig):
        check_vision(config)
    if not isinstance(config, Config):
        return
    for section in [*config.objectives, *(one for stage in config.stages for one in stage.objectives or [])]:
        build(section)
    for section in config.data.mixture:
        wrong = set(section.options()) - set(defaults(sources._SOURCES[section.source]))
        if wrong:
            raise ConfigError(f"{section.source} has no {', '.join(wrong)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_of_a_page_can_be_parsed_and_what_it_imports_of_mmkd_is_there(page):
    for line, text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmkd"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, one.name) for one in node.names), f"{page.name}:{line}: {node.module}"


def slugs(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: as_yaml(one.default) for one in parameters if one.name != "self"}


def as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("page", "known"),
    [
        (
            "objectives.md",
            {name: {key: as_yaml(one.default) for key, one in options(name).items()} for name in names()},
        ),
        ("vision.md", {name: defaults(method) for name, method in METHODS.items()}),
    ],
)
def test_the_table_of_options_names_every_objective_with_its_options_and_defaults(page, known):
    table = (ROOT / "docs" / page).read_text().split("| name | options |\n|---|---|\n")[1].split("\n\n")[0]
    told = {}
    for row in table.splitlines():
        first, second = row.strip("|").split("|")
        given = [yaml.safe_load(text) for text in re.findall(r"`(\w+: [^`]+)`", second)]
        for name in re.findall(r"`(\w+)`", first):
            told[name] = {key: value for one in given for key, value in one.items()}
    assert told == known
