"""What cannot be is refused before a model is loaded: in each config here student and teacher are not even there."""

import pytest
from PIL import Image

from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.checks import check_micro_batch, check_test, check_vision
from mmkd.vision_distill.run import train, train_student
from mmkd.vision_distill.sources import Listed, folder

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
        (
            [CE],
            {"data": {"augment": {"rand_augment": "rand-z9"}}},
            "rand_augment is 'rand-z9', which timm does not take",
        ),
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


@pytest.mark.parametrize(("name", "least"), [("crd", 2), ("dist", 2), ("rkd", 3)])
def test_what_compares_images_wants_enough_of_them(tmp_path, name, least):
    asked = config(tmp_path, [CE, {"name": name}])
    check_micro_batch(asked, least)
    with pytest.raises(ConfigError, match=rf"objectives\[1\] {name} compares {least} images of a micro batch"):
        check_micro_batch(asked, least - 1)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["a", "c"], "it lacks b. Scores"),
        (["a", "b", "c", "d"], "it also has d. Scores"),
        (["b", "a", "c"], "it has another order"),
    ],
)
def test_a_test_set_of_other_classes_is_refused_before_training(test, message):
    train = Listed(["a", "b", "c"], [])
    check_test(train, Listed(["a", "b", "c"], []))
    with pytest.raises(ConfigError, match=message):
        check_test(train, Listed(test, []))


def test_a_run_with_such_a_test_set_stops_before_a_model_is_loaded(tmp_path):
    for split, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "one.png")
            (tmp_path / split / name / "._one.png").write_bytes(b"what a Mac leaves beside it")
    assert len(folder(str(tmp_path), "train")) == 3
    data = {split: {"source": "folder", "path": str(tmp_path), "split": split} for split in ("train", "test")}
    with pytest.raises(ConfigError, match="it lacks c"):
        train_student(config(tmp_path, [CE], data), (1, 1), tmp_path, tmp_path / "model", 0, 1, False)
