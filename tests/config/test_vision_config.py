"""Configs of `kind: vision`."""

import pytest

from mmkd.config.load import dump_config, load_config, load_run, packaged, where
from mmkd.config.schema import Config
from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError

TEXT = """\
kind: vision
student: {model: "timm:resnet18"}
data:
  train: {source: digits, split: train}
recipe: {steps: 5}
"""


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.yaml").write_text(TEXT)
    return "v.yaml"


def test_the_kind_of_a_config_says_what_is_trained(base):
    config = load_run(base, ["recipe.steps=7"])
    assert isinstance(config, VisionConfig)
    assert config.recipe.steps == 7
    assert where(config, "data.train.split") == "v.yaml:4"
    assert isinstance(load_run("demo/teacher"), Config)


def test_a_written_config_reads_back(base, tmp_path):
    config = load_run(base)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_run("again.yaml").model_dump() == config.model_dump()


@pytest.mark.parametrize("name", sorted(p.stem for p in packaged("configs").glob("vision/*.yaml")))
def test_packaged_vision_configs_are_whole(name):
    assert isinstance(load_run(f"vision/{name}"), VisionConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=audio", r"kind is 'audio'; allowed: 'vision', or no kind for a vision-language model"),
        ("recipe.step=3", r"recipe\.step is not a field of RecipeSection\. Did you mean steps\?"),
        ("recipe.optimizer=sgdm", r"recipe\.optimizer is 'sgdm'; allowed: 'adamw', 'sgd' or 'lamb'"),
        ("recipe.optimizer=lamb", r"recipe\.optimizer lamb .* ZeRO flattens .* set deepspeed\.stage to 0"),
        ("data.crop.scale=[.9,.2]", r"data\.crop\.scale is \[0\.9, 0\.2\]; allowed: .* 0 < least <= largest <= 1"),
        ("data.crop.scale=[-1,-.5]", r"data\.crop\.scale is \[-1\.0, -0\.5\]; allowed"),
        ("data.crop.ratio=[0,1]", r"data\.crop\.ratio is \[0\.0, 1\.0\]; allowed: .* 0 < least <= largest"),
        ("student.image_size=big", r"student\.image_size is 'big'; allowed: a whole number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(base, override, message):
    with pytest.raises(ConfigError, match=message):
        load_run(base, [override])


def test_commands_for_vision_language_models_refuse_a_vision_config(base):
    with pytest.raises(ConfigError, match="kind is not a field of"):
        load_config(base)
