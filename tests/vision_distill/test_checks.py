"""What cannot be is refused before a model is loaded: in each config here student and teacher are not even there."""

import pytest

from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.checks import check_vision
from mmkd.vision_distill.run import train

CE, OFA, RELEASED = {"name": "cross_entropy"}, {"name": "ofa"}, {"name": "ofa", "form": "released"}
CLIP = {"model": "open_clip:none/none"}


def config(tmp_path, objectives, data=None, **sections):
    base = {
        "kind": "vision",
        "run": {"dir": str(tmp_path / "run")},
        "student": {"model": "timm:none"},
        "teacher": {"model": "timm:none"},
        "objectives": objectives,
        "data": {"train": {"source": "digits"}} | (data or {}),
        "recipe": {"steps": 1},
    }
    return VisionConfig.model_validate(base | sections)


@pytest.mark.parametrize(
    ("objectives", "sections", "message"),
    [
        ([OFA | {"eps": 0.5}], {}, "eps=0.5, expected a number >= 1"),
        ([OFA | {"eps": [1, 1, 1]}], {}, "has 3 values, expected one number, or 5"),
        ([{"name": "kd", "temperature": -1}], {}, "kd: temperature=-1.*, expected a number > 0"),
        ([CE, {"name": "kd"}], {"teacher": None}, "objectives kd need a teacher"),
        ([{"name": "kd"}, {"name": "kd"}], {}, r"objectives\[1\] names kd again"),
        ([CE, {"name": "kd"}], {"space": {"kind": "patches"}}, r"objectives\[1\].name is kd, which compares two"),
        ([CE, OFA], {"space": {"kind": "patches"}}, "nobody knows the true row"),
        ([CE, RELEASED], {"space": {"kind": "patches", "codes": 0}}, "codes=0, expected a whole number >= 1"),
        ([CE, OFA], {"space": {"kind": "contrastive"}}, "'timm:none', which has no text tower"),
        (
            [CE, OFA],
            {"space": {"kind": "contrastive", "template": "a photo"}, "teacher": CLIP},
            "no place for the class",
        ),
        ([CE, RELEASED], {"space": {"kind": "prompts", "bank": "/nope"}, "teacher": CLIP}, "bank /nope cannot be read"),
        ([CE, OFA], {}, "form paper holds the labels' cross-entropy, and cross_entropy counts it again"),
        ([RELEASED], {}, "form released holds no cross-entropy of the labels"),
        ([{"name": "fitnet"}], {"data": {"test": {"source": "digits"}}}, "fitnet teach the student's features and not"),
        (
            [RELEASED],
            {"space": {"kind": "patches"}, "data": {"test": {"source": "digits"}}},
            "ofa teach the student's features and not its classifier",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, objectives, sections, message):
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, objectives, **sections))
    assert not (tmp_path / "run").exists()


def test_features_alone_may_be_taught_where_no_classifier_is_scored(tmp_path):
    check_vision(config(tmp_path, [RELEASED], space={"kind": "patches"}))
    check_vision(config(tmp_path, [{"name": "fitnet"}]))
    check_vision(config(tmp_path, [CE, OFA], space={"kind": "contrastive"}, teacher=CLIP))
