"""Configs: merging, overrides, packaged names, round trip."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmkd.config.kinds import KINDS
from mmkd.config.load import dump_config, find_config, json_schema, load_config, packaged, where
from mmkd.config.sections import Section
from mmkd.config.yaml_tree import format_path, parse, parse_path
from mmkd.errors import ConfigError

BASE = """\
student:
  vision: {source: "timm:resnet18", taps: [2, 3]}
  language: {source: "hf:org/model"}
  voco: {tokens: 4}
objectives:
  - {name: cross_entropy}
  - {name: forward_kl, temperature: 2.0}
data:
  mixture: [{source: easyvqa, split: train}]
stages:
  - {name: align, steps: 5}
  - {name: tune, steps: 7, learning_rate: 1e-4}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    return Path("base.yaml")


def test_a_file_is_read_with_its_defaults_and_open_options(base):
    config = load_config(base)
    assert config.student.voco.tokens == 4
    assert config.student.voco.preset == "keep_sink"
    assert config.objectives[1].options() == {"temperature": 2.0}
    assert config.data.mixture[0].options() == {"split": "train"}


def test_exponents_without_a_dot_are_numbers_in_open_sections_too(base):
    config = load_config(base, ["objectives[1].temperature=1e-4"])
    assert config.objectives[1].options()["temperature"] == 1e-4
    assert config.stages[1].learning_rate == 1e-4


def test_a_child_changes_two_lines_and_keeps_the_rest(base):
    Path("sub").mkdir()
    Path("sub/child.yaml").write_text("extends: ../base.yaml\nstudent:\n  voco: {preset: faithful}\n")
    config = load_config("sub/child.yaml")
    assert (config.student.voco.tokens, config.student.voco.preset) == (4, "faithful")
    assert config.student.vision.taps == [2, 3]


def test_lists_are_replaced_not_merged(base):
    Path("child.yaml").write_text("extends: base.yaml\nobjectives:\n  - {name: uld}\n")
    assert [objective.name for objective in load_config("child.yaml").objectives] == ["uld"]


def test_of_several_parents_the_later_wins_and_the_file_itself_wins_over_all(base):
    Path("two.yaml").write_text("student: {voco: {tokens: 2}}\nrun: {seed: 2}\n")
    Path("three.yaml").write_text("run: {seed: 3}\ntraining: {log_every: 3}\n")
    Path("child.yaml").write_text("extends: [base.yaml, two, three.yaml]\ntraining: {log_every: 9}\n")
    config = load_config("child.yaml")
    assert (config.student.voco.tokens, config.run.seed, config.training.log_every) == (2, 3, 9)


def test_extends_in_a_circle_is_refused(base):
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        load_config("a.yaml")


def test_two_children_may_share_a_parent(base):
    Path("left.yaml").write_text("extends: base.yaml\n")
    Path("right.yaml").write_text("extends: base.yaml\nrun: {seed: 4}\n")
    Path("both.yaml").write_text("extends: [left.yaml, right.yaml]\n")
    assert load_config("both.yaml").run.seed == 4


def test_a_missing_parent_names_the_line_of_extends(base):
    Path("a.yaml").write_text("run: {seed: 1}\nextends: bse.yaml\n")
    with pytest.raises(ConfigError, match=r"no file bse\.yaml.*\(extends in a\.yaml:2\)"):
        load_config("a.yaml")


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("student.voco.tokens=8", lambda c: c.student.voco.tokens, 8),
        ("stages[0].steps=10", lambda c: c.stages[0].steps, 10),
        ("stages[-1].steps=11", lambda c: c.stages[1].steps, 11),
        ("student.vision.taps=[1]", lambda c: c.student.vision.taps, [1]),
        ("student.voco=null", lambda c: c.student.voco, None),
        ("teacher.kind=shared", lambda c: c.teacher.kind, "shared"),
        ("run.dir=runs/a=b", lambda c: c.run.dir, "runs/a=b"),
        ("deepspeed.config.zero_optimization.overlap_comm=true", lambda c: c.deepspeed.config["zero_optimization"], {"overlap_comm": True}),
        ("student.voco={preset: faithful}", lambda c: c.student.voco.tokens, 1),
    ],
)  # fmt: skip
def test_an_override_sets_a_typed_value(base, override, read, value):
    assert read(load_config(base, [override])) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.voco.tokens", r"'student.voco.tokens' is not of the form path=value"),
        ("=3", r"is not of the form path=value"),
        ("stages[2].steps=1", r"stages has 2 items, no \[2\]"),
        ("stages.steps=1", r"stages is a list: give an index like \[0\]"),
        ("student[0]=1", r"student is a mapping: give a key"),
        ("student.voco.tokens.x=1", r"student.voco.tokens is the value 4, with nothing below it"),
        ("student.voco.tokenz=4", r"student\.voco\.tokenz is not .* Did you mean tokens\? \(override student.voco.tokenz=4\)"),
        ("run.dir=[1", r"not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(base, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(base, [override])


def test_later_overrides_win(base):
    assert load_config(base, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_the_dumped_config_loads_to_an_equal_one(base):
    config = load_config(base, ["teacher={kind: live, model: runs/t, cache: 3}", "stages[0].read=[1, full]"])
    Path("again.yaml").write_text(dump_config(config))
    again = load_config("again.yaml")
    assert again.model_dump() == config.model_dump()
    assert again.teacher.options() == {"cache": 3}


@pytest.mark.parametrize("name", ["1e5", "-.5E+3", "12e34567"])
def test_a_name_that_looks_like_a_number_is_dumped_as_a_name(base, name):
    config = load_config(base, [f"run.dir='{name}'"])
    Path("again.yaml").write_text(dump_config(config))
    assert load_config("again.yaml").run.dir == name


def test_a_number_is_dumped_as_a_number(base):
    config = load_config(base, ["teacher={kind: live, model: runs/t, rate: 1e-20, scale: 1e30}"])
    Path("again.yaml").write_text(dump_config(config))
    assert load_config("again.yaml").teacher.options() == {"rate": 1e-20, "scale": 1e30}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: *b\n",
        "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b}\n",
        "b: {<<: &b {<<: {x: 1, y: 2}, x: 3}}\nc: *b\n",
    ],
)
def test_a_mapping_laid_over_another_can_be_named_again(text):
    read = parse(text, "x.yaml").plain()
    assert read["b"] == read["c"] == {"x": 3, "y": 2}


def test_a_run_folder_stands_for_its_config(base):
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").write_text(BASE)
    assert load_config("runs/x").student.voco.tokens == 4


def test_every_packaged_config_is_found_by_its_name():
    folder = packaged("configs")
    assert folder.is_dir()
    for file in folder.rglob("*.yaml"):
        assert find_config(str(file.relative_to(folder).with_suffix(""))) == file


@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [("zero1", 1, "none"), ("zero2", 2, "none"), ("zero3", 3, "none"), ("offload", 3, "cpu")],
)
def test_a_config_takes_its_zero_stage_from_a_packaged_one(base, name, stage, offload):
    Path("mine.yaml").write_text(f"extends: [base.yaml, deepspeed/{name}]\n")
    section = load_config("mine.yaml").deepspeed
    assert (section.stage, section.offload) == (stage, offload)


def test_packaged_configs_are_inside_the_package_when_it_is_installed(tmp_path):
    package = tmp_path / "site" / "mmkd"
    assert packaged("configs", package=package) == package / "_share" / "configs"


def test_a_local_file_wins_over_a_packaged_one_and_an_unknown_name_is_named(base):
    with pytest.raises(ConfigError, match=r"no file demo/nothing, and no packaged config"):
        load_config("demo/nothing")
    Path("demo").mkdir()
    Path("demo/teacher.yaml").write_text(BASE)
    assert find_config("demo/teacher") == Path("demo/teacher.yaml")


def test_where_tells_file_and_line_across_files(base):
    Path("child.yaml").write_text("extends: base.yaml\n\nstudent:\n  voco:\n    preset: faithful\n")
    config = load_config("child.yaml", ["run.seed=3"])
    assert where(config, "student.voco.preset") == "child.yaml:5"
    assert where(config, "student.voco.tokens") == "base.yaml:4"
    assert where(config, "objectives[1].temperature") == "base.yaml:7"
    assert where(config, "run.seed") == "override run.seed=3"


@pytest.mark.parametrize("path", ["a", "a.b", "a[0].b", "a[0][-1].c_d"])
def test_paths_are_parsed_and_written_back(path):
    assert format_path(parse_path(path)) == path


@pytest.mark.parametrize("path", ["", ".a", "[0]", "a[", "a[x]", "a..b", "a]"])
def test_malformed_paths_are_refused(path):
    with pytest.raises(ValueError):
        parse_path(path)


def test_the_schema_knows_every_field_and_lets_files_be_partial():
    schema = json.loads(json.dumps(json_schema()))
    assert "extends" in schema["properties"]
    assert "required" not in schema
    assert "required" not in schema["$defs"]["VisionSection"]
    assert schema["$defs"]["StageSection"]["required"] == ["name", "steps"]
    assert schema["$defs"]["VocoSection"]["additionalProperties"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_config_has_a_schema_in_which_every_field_is_known(kind):
    schema = json_schema(KINDS[kind])
    assert set(KINDS[kind].model_fields) | {"extends"} == set(schema["properties"])
    assert "required" not in schema


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    for below in kind.__subclasses__():
        yield below
        yield from sections(below)


def test_a_section_with_one_key_set_has_the_defaults_that_it_has_without():
    """A default that its own class does not know would change as soon as a neighbour is set."""
    made = [
        (f"{section.__name__}.{name}", field.default_factory())
        for section in sections(Section)
        for name, field in section.model_fields.items()
        if field.default_factory is not None
    ]
    found = [(name, value) for name, value in made if isinstance(value, Section)]
    assert len(found) > 20
    for name, value in found:
        assert value == type(value)(), name
