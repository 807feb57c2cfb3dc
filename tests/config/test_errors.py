"""Every kind of config error says where, what was found, what is allowed, and the nearest name."""

from pathlib import Path

import pytest

from mmkd.config.load import check_options, load_config
from mmkd.errors import ConfigError

HEAD = """\
student:
  vision: {source: "timm:resnet18"}
  language: {source: "hf:org/model"}
data:
  mixture: [{source: easyvqa}]
stages:
  - {name: align, steps: 5}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def errors_of(text: str) -> list[str]:
    Path("x.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml")
    return str(caught.value).splitlines()


# HEAD has 7 lines, so what is appended starts in line 8.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("voco: {}", "config: voco is not a field of Config. Fields: run, student, teacher, objectives, data, stages, training, deepspeed, evaluate. (x.yaml:8)"),
        ("run:\n  sed: 1", "config: run.sed is not a field of RunSection. Did you mean seed? (x.yaml:9)"),
        ("run: {seed: four}", "config: run.seed is 'four'; allowed: a whole number. (x.yaml:8)"),
        ("run: {seed: 1.5}", "config: run.seed is 1.5; allowed: a whole number. (x.yaml:8)"),
        ("run: {seed: -1}", "config: run.seed is -1; allowed: greater than or equal to 0. (x.yaml:8)"),
        ("run: {dir: 3}", "config: run.dir is 3; allowed: text. (x.yaml:8)"),
        ("run: 4", "config: run is 4; allowed: a mapping with the fields of RunSection. (x.yaml:8)"),
        ("training:\n  device: cud", "config: training.device is 'cud'; allowed: 'auto', 'cpu' or 'cuda'. Did you mean cuda? (x.yaml:9)"),
        ("training: {activation_checkpointing: maybe}", "config: training.activation_checkpointing is 'maybe'; allowed: true or false. (x.yaml:8)"),
        ("deepspeed: {stage: 7}", "config: deepspeed.stage is 7; allowed: 0, 1, 2 or 3. (x.yaml:8)"),
        ("deepspeed: {config: [1]}", "config: deepspeed.config is [1]; allowed: a mapping. (x.yaml:8)"),
        ("evaluate:\n  tokens:\n    - 1\n    - fll", "config: evaluate.tokens[1] is 'fll'; allowed: a whole number or 'full'. Did you mean full? (x.yaml:11)"),
        ("training: {trackers: [tensorbord]}", "config: training.trackers[0] is 'tensorbord'; allowed: 'tensorboard', 'wandb' or 'trackio'. Did you mean tensorboard? (x.yaml:8)"),
        ("objectives:\n  - name: a\n    weight: x", "config: objectives[0].weight is 'x'; allowed: a number. (x.yaml:10)"),
        ("objectives:\n  - weight: 2", "config: objectives[0].name is missing; ObjectiveSection needs it. (x.yaml:9)"),
    ],
)  # fmt: skip
def test_one_line_tells_it_all(text, message):
    assert errors_of(HEAD + text) == [message]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mixture: [{source: easyvqa}]", "mixture: []", "config: data.mixture is []; allowed: at least 1 item(s). (x.yaml:5)"),
        (', steps: 5', "", "config: stages[0].steps is missing; StageSection needs it: Optimiser steps. (x.yaml:7)"),
        ('vision: {source: "timm:resnet18"}', "vision: {source: a, grid: [1, 2, 3]}", "config: student.vision.grid is [1, 2, 3]; allowed: at most 2 item(s). (x.yaml:2)"),
        ('vision: {source: "timm:resnet18"}', "vision: {source: a, grid: [1]}", "config: student.vision.grid is [1]; it needs more items. (x.yaml:2)"),
        ('vision: {source: "timm:resnet18"}', "vision: {source: a, taps: 3}", "config: student.vision.taps is 3; allowed: a list. (x.yaml:2)"),
        ('{source: "hf:org/model"}', "{source: a, keep_layers: [b]}", "config: student.language.keep_layers is ['b']; allowed: a whole number or a list of whole numbers or `every 2` (or another number). (x.yaml:3)"),
        ('{source: "hf:org/model"}', "{source: a, keep_layers: every second}", "config: student.language.keep_layers is 'every second'; allowed: a whole number or a list of whole numbers or `every 2` (or another number). (x.yaml:3)"),
        ('  vision: {source: "timm:resnet18"}\n', "", "config: student needs vision and language, or init with the folder of a composed model. (x.yaml:1)"),
        (', steps: 5', ", steps: 5, read: []", "config: stages[0].read is []; allowed: at least 1 item(s). (x.yaml:7)"),
        (', steps: 5', ", steps: 5, read: [0]", "config: stages[0].read[0] is 0; allowed: greater than or equal to 1 or 'full'. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, read: [4, 4]", "config: stages[0] has read [4, 4], which names a count twice; use read_weights to draw one more often. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, read: [4, 1], read_weights: [1]", "config: stages[0] has read_weights [1.0]; allowed: a number from 0 for each of the 2 entries of read, not all 0. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, learning_rates: {vision: 1.0e-5}", "config: stages[0] has learning_rates of vision, which it does not train; name it in trainable or leave its rate out. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, read: [4, 1], read_weights: [1, 0], reads: 2", "config: stages[0] has reads 2, and read has 1 entries to draw from. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, read: [4, 1], read_weights: [0, 1], progressive: true", "config: stages[0] is progressive, and read_weights [0.0, 1.0] never draw 4, which it starts with. (x.yaml:7)"),
        (', steps: 5', ", steps: 5, reads: 2", "config: stages[0] has reads 2, and read has 1 entries to draw from. (x.yaml:7)"),
        ('name: align', 'name: "a/b"', "config: stages[0].name is 'a/b'; allowed: text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$. (x.yaml:7)"),
        ('steps: 5}', 'steps: 5}\n  - {name: align, steps: 5}', "config: stages has two of the name align, and a stage's folder has its name; rename one. (x.yaml:1)"),
        ('easyvqa}]\nstages:\n  - {name: align', 'easyvqa}]\n  cache_features: true\nstages:\n  - {trainable: [vision], name: align', "config: stage align trains vision, whose features change; switch data.cache_features off. (x.yaml:1)"),
        ('  vision:', '  keep_layers: 3\n  vision:', "config: student keep_layers is of the model in init; write language.keep_layers. (x.yaml:1)"),
        ('  vision:', '  init: runs/x\n  vision:', "config: student init already brings vision and language; remove one of them. (x.yaml:1)"),
    ],
)  # fmt: skip
def test_errors_inside_the_required_sections(old, new, message):
    assert old in HEAD
    assert errors_of(HEAD.replace(old, new)) == [message]


def test_several_errors_are_listed_together():
    lines = errors_of(HEAD + "run: {sed: 1}\ntraining: {log_every: 0}\n")
    assert lines == [
        "config: run.sed is not a field of RunSection. Did you mean seed? (x.yaml:8)",
        "config: training.log_every is 0; allowed: greater than or equal to 1. (x.yaml:9)",
    ]


def test_an_error_in_a_parent_names_the_parents_file_and_line():
    Path("base.yaml").write_text(HEAD + "run:\n  sed: 1\n")
    assert errors_of("extends: base.yaml\nrun:\n  dir: a\n") == [
        "config: run.sed is not a field of RunSection. Did you mean seed? (base.yaml:9)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {seed: 1}\nrun: {seed: 2}\n", "config: run stands twice in one mapping, first in line 1; remove one. (x.yaml:2)"),
        ("run: {<<: {seed: 1, seed: 2}}\n", "config: seed stands twice in one mapping, first in line 1; remove one. (x.yaml:1)"),
        ("- a\n", "config: a config is a mapping of sections, found a list. (x.yaml:1)"),
        ("run: [1\ntraining: {}\n", "(x.yaml:2)"),
        ("run: &a [*a]\n", "config: an alias (*) contains itself. (x.yaml:1)"),
        ("run: !!python/object:os.system {}\n", "config: the tag tag:yaml.org,2002:python/object:os.system is not allowed; only plain values are. (x.yaml:1)"),
        ("run:\n  seed: !!python/name:os.system x\n", "could not determine a constructor for the tag"),
        ("extends: 4\n", "config: extends is 4; allowed: a path or a list of paths. (x.yaml:1)"),
        ("? [a]\n: b\n", "config: a key has to be a word, found a sequence. (x.yaml:1)"),
    ],
)  # fmt: skip
def test_files_that_are_no_config(text, message):
    assert message in "\n".join(errors_of(text))


def test_an_empty_file_lacks_its_sections():
    assert [line.split(";")[0] for line in errors_of("")] == [
        "config: student is missing",
        "config: data is missing",
        "config: stages is missing",
    ]


def test_a_file_that_is_no_text_is_named():
    Path("x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"x\.yaml cannot be read"):
        load_config("x.yaml")


class Divergence:
    def __init__(self, temperature: float = 1.0, layers: list[int] | None = None, *, chunk: int): ...


def test_options_are_checked_against_what_they_build():
    assert check_options("kl", {"temperature": 2, "chunk": "7"}, Divergence) == {"temperature": 2.0, "chunk": 7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatur": 2, "chunk": 1}, "config: objectives[1].temperatur is not a field of kl. Did you mean temperature?"),
        ({"zzz": 2, "chunk": 1}, "config: objectives[1].zzz is not a field of kl. Fields: temperature, layers, chunk."),
        ({"temperature": "hot", "chunk": 1}, "config: objectives[1].temperature is 'hot'; allowed: a number."),
        ({}, "config: objectives[1].chunk is missing; kl needs it."),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError) as caught:
        check_options("kl", options, Divergence, at="objectives[1]")
    assert str(caught.value) == message


def test_a_wrong_option_of_a_loaded_config_names_file_and_line():
    Path("x.yaml").write_text(HEAD + "objectives:\n  - name: kl\n    temperatur: 2\n    chunk: 1\n")
    config = load_config("x.yaml")
    with pytest.raises(ConfigError, match=r"objectives\[0\]\.temperatur is not .* \(x\.yaml:10\)$"):
        check_options("kl", config.objectives[0].options(), Divergence, at="objectives[0]", config=config)


def test_a_target_that_takes_anything_refuses_no_name():
    def build(**options): ...

    assert check_options("open", {"a": 1}, build) == {"a": 1}
