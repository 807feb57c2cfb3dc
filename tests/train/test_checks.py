"""What cannot be is refused before a weight is loaded: in each config here student and teacher are not even there."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import Gemma2Config, LlamaConfig, PhiConfig

from mmkd.config.schema import Config
from mmkd.errors import ConfigError
from mmkd.models import MmkdConfig
from mmkd.train.checks import check_run, check_sides
from mmkd.train.run import train

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
PARTS = {"vision": {"source": "timm:none"}, "language": {"source": "hf:none"}}
STAGE = {"name": "s", "steps": 3}
LIVE = {"teacher": {"kind": "live", "model": "nowhere"}}


def config(tmp_path: Path, stage: Any = None, data: Any = None, **sections: Any) -> Config:
    records = tmp_path / "records.jsonl"
    records.touch()
    base = {
        "run": {"dir": str(tmp_path / "run")},
        "student": PARTS | {"voco": {"tokens": 4}},
        "data": {"mixture": [{"source": "jsonl", "path": str(records)}]} | (data or {}),
        "stages": [STAGE | (stage or {})],
    }
    return Config.model_validate(base | sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"stage": {"read": ["full", 9]}}, r"read names 9, and the student can be read with 1 to 4, or full"),
        ({"student": PARTS, "stage": {"read": [1]}}, "with full only, as it has no compression tokens"),
        ({"objectives": [{"name": "forward_kl"}]}, "objectives forward_kl need a teacher, and the config has none"),
        ({"objectives": [{"name": "voco_attention"}]}, "objectives voco_attention need a teacher"),
        ({"objectives": [{"name": "tower_features"}]}, "objectives tower_features need a teacher"),
        (
            {"objectives": [{"name": "uld"}], "teacher": {"kind": "shared"}},
            "shared reads the student's tokens, and uld",
        ),
        ({"objectives": [{"name": "ofa_logits"}], "teacher": {"kind": "shared"}}, "use teacher.kind live"),
        ({"objectives": [{"name": "forward_kl"}], "teacher": {"kind": "shared"}}, "the student is its own teacher"),
        ({"stage": {"objectives": [{"name": "forward_kll"}]}}, "Did you mean forward_kl"),
        ({"objectives": [{"name": "forward_kl", "temperatur": 2}]}, "Did you mean temperature"),
        ({"data": {"mixture": [{"source": "scene"}]}}, r"data.mixture\[0\].source is 'scene'; .* Did you mean scenes"),
        ({"data": {"mixture": [{"source": "scenes", "girds": 2}]}}, r"mixture\[0\].girds is not .* Did you mean grid"),
        ({"data": {"mixture": [{"source": "jsonl", "path": "nowhere.jsonl"}]}}, r"mixture\[0\].path is nowhere.jsonl"),
        (
            {"data": {"packing": True}, "student": PARTS | {"attention": "flex_attention"}},
            "flex_attention takes no mask of ours, which data.packing needs",
        ),
        (
            {"student": PARTS | {"voco": {"mass_bias": True}, "attention": "flash_attention_2"}},
            "voco.mass_bias needs; use attention: sdpa",
        ),
        (
            LIVE | {"objectives": [{"name": "hidden_states", "layers": "evry 2"}]},
            "layers='evry 2', expected all",
        ),
        (LIVE | {"objectives": [{"name": "hidden_states", "layers": 3.5}]}, "layers=3.5, expected all, every n"),
        (LIVE | {"objectives": [{"name": "voco_attention", "layers": {"a": 1}}]}, "layers={'a': 1}, expected all"),
        (LIVE | {"objectives": [{"name": "attention_relations", "layers": [[1, 2, 3]]}]}, "expected all, every n"),
        (
            LIVE | {"objectives": [{"name": "hidden_states", "distance": "mse", "temperature": 5.0}]},
            "temperature=5.0 has no place beside distance mse",
        ),
        (LIVE | {"objectives": [{"name": "forward_kl"}, {"name": "forward_kl"}]}, "objectives name forward_kl twice"),
        ({"objectives": []}, "has no objective, and so nothing to learn"),
        (LIVE | {"objectives": [{"name": "taid"}, {"name": "forward_kl"}]}, "taid and forward_kl each want"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, **sections))
    assert not (tmp_path / "run").exists()


def test_the_counts_of_a_student_that_is_there_already_are_those_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for voco, allowed in (({"tokens": 2}, "1 to 2"), (None, "full only")):
        (folder / "config.json").write_text(json.dumps({"voco": voco}))
        with pytest.raises(ConfigError, match=allowed):
            check_run(config(tmp_path, student={"init": str(folder)}, stage={"read": [3]}))
    check_run(config(tmp_path, student={"init": "some/hub-id"}, stage={"read": [3]}))  # loading will say


@pytest.mark.parametrize(
    ("objective", "student_options", "message"),
    [
        ({"name": "hidden_states", "layers": [99]}, {}, r"hidden_states: the student has layers 0\.\.1"),
        ({"name": "voco_attention", "layers": [[1, 3]]}, {}, r"the teacher has layers 0\.\.2"),
        ({"name": "hidden_states", "layers": [1]}, {"keep_layers": 1}, r"the student has layers 0\.\.0"),
        ({"name": "cross_entropy"}, {"keep_layers": 3}, r"keep_layers 3: this decoder has layers 0\.\.1"),
        (
            {"name": "attention_relations", "heads": 7},
            {},
            r"heads=7 does not divide .*: 1, 2, 4, 8, 16",
        ),
    ],
)
def test_layers_and_heads_of_every_stage_are_held_against_config_json_where_there_are_no_weights(
    tmp_path, student, teacher, objective, student_options, message
):
    for name, folder in (("student", student), ("teacher", teacher)):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = config(
        tmp_path,
        student={"init": str(tmp_path / "student")} | student_options,
        teacher={"kind": "live", "model": str(tmp_path / "teacher")},
        stages=[STAGE, STAGE | {"name": "second", "objectives": [objective]}],
    )
    with pytest.raises(ConfigError, match=message):
        train(settings)
    assert not (tmp_path / "run").exists()


def test_heads_that_differ_are_refused_where_there_are_no_weights(tmp_path, student, wide_teacher):
    sides = {"student": {"init": str(student)}, "teacher": {"kind": "live", "model": str(wide_teacher)}}
    settings = config(tmp_path, objectives=[{"name": "voco_attention"}], **sides)
    with pytest.raises(ConfigError, match=r"student has 4 heads of width 8 .* teacher has 4 heads of width 12"):
        check_run(settings)
    check_run(config(tmp_path, objectives=[{"name": "attention_relations", "heads": 8}], **sides))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"the student's layers 0, 2, which see the last 64 tokens, and data\.max_length is 128"),
        ({"objectives": [{"name": "voco_attention", "layers": [1]}]}, None),
        ({"data": {"max_length": 64}}, None),
        ({"cut": [1, 0]}, r"the student's layers 0, which see"),
        ({"objectives": [{"name": "hidden_states"}]}, None),
    ],
)
def test_a_layer_that_does_not_see_the_longest_row_is_refused_where_attention_is_compared(tmp_path, options, message):
    text = Gemma2Config(**TINY | {"num_hidden_layers": 4}, sliding_window=64)
    assert text.layer_types[:2] == ["sliding_attention", "full_attention"]
    MmkdConfig(text_config=text).save_pretrained(tmp_path / "model")
    settings = config(
        tmp_path,
        student={"init": str(tmp_path / "model"), "keep_layers": options.get("cut")},
        teacher={"kind": "shared"},
        objectives=options.get("objectives", [{"name": "voco_attention"}]),
        data={"mixture": [{"source": "easyvqa"}], "max_length": 128} | options.get("data", {}),
    )
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_sides(settings)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (Gemma2Config(**TINY, final_logit_softcapping=30.0), "final_logit_softcapping"),
        (PhiConfig(**TINY), "bias"),
        (LlamaConfig(**TINY), None),
    ],
)
def test_a_head_that_is_more_than_a_product_is_refused_beside_a_kernel(tmp_path, text, more):
    MmkdConfig(text_config=text).save_pretrained(tmp_path / "model")
    objectives = [{"name": "cross_entropy", "kernel": "liger"}]
    settings = config(tmp_path, student={"init": str(tmp_path / "model")}, objectives=objectives)
    with pytest.raises(ConfigError, match=f"the student's has {more}") if more else nullcontext():
        check_sides(settings)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_an_objectives_weight_is_a_number_above_0(tmp_path, weight):
    with pytest.raises(ValidationError, match="weight"):
        config(tmp_path, objectives=[{"name": "cross_entropy", "weight": weight}])


def test_a_tracker_that_is_not_installed_is_named_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkd.train.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"training\.trackers names trackio.*pip install trackio"):
        check_run(config(tmp_path, training={"trackers": ["trackio"]}))


@pytest.mark.parametrize("composed", [True, False])
def test_tokenizers_that_do_not_meet_are_refused_where_there_are_no_weights_at_all(
    tmp_path, student, foreign_teacher, composed
):
    for name, folder in (("student", student), ("teacher", foreign_teacher)):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    at = str(tmp_path / "student")
    begun = {"init": at} if composed else PARTS | {"language": {"source": f"hf:{at}"}}
    teacher = {"kind": "live", "model": str(tmp_path / "teacher")}
    settings = config(tmp_path, student=begun, teacher=teacher, objectives=[{"name": "forward_kl"}])
    with pytest.raises(ConfigError, match=r"need one tokenizer\. Use uld"):
        train(settings)
    assert not (tmp_path / "run").exists()
