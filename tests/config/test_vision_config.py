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


# The recipes of OFA-KD's authors, in epochs and in images a step over their 8 GPUs. Sources: files of their program's
# configs/ (github.com/Hao840/OFAKD), its README for eps of imagenet_resnet18, and for cifar100_resnet18 the log of their
# own run (issue 14 there), whose rate and weight of the stages are other than in file and program.
CNN = {
    "optimizer": "sgd", "schedule": "cosine", "warmup": 3, "gradient_clipping": 0, "average": None,
    "rand_augment": None, "erasing": 0, "mixup": 0, "cutmix": 0, "drop_path_rate": 0, "smoothing": 0.1, "binary": False,
    "form": "released", "final_weight": 1, "drops": [],
}  # fmt: skip
VIT = CNN | {
    "epochs": 300, "batch_size": 8 * 128, "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05,
    "warmup": 20, "gradient_clipping": 5,
    "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "mixup": 0.8, "cutmix": 1,
}  # fmt: skip
CIFAR_VIT = VIT | {"least_learning_rate": 1e-5, "eps": 1, "stage_weight": 0.1}  # cifar/vit_mlp.yaml; weight of the log
USED = {
    "cifar100_deit": CIFAR_VIT,
    "cifar100_resmlp": CIFAR_VIT,
    "cifar100_resnet18": CNN | {  # the log
        "epochs": 300, "batch_size": 8 * 128, "learning_rate": 0.1, "least_learning_rate": 1e-3, "weight_decay": 2e-3,
        "eps": 1, "stage_weight": 0.1,
    },
    "imagenet_deit": VIT | {  # imagenet/vit_mlp.yaml; eps and weight of the program
        "least_learning_rate": 1e-6, "average": 0.99996, "eps": 1, "stage_weight": 1,
    },
    "imagenet_resnet18": CNN | {  # imagenet/cnn.yaml; eps of the README, weight of the program
        "epochs": 100, "batch_size": 8 * 64, "learning_rate": 0.1, "least_learning_rate": 1e-6, "weight_decay": 1e-4,
        "schedule": "step", "drops": [0.3, 0.6, 0.9], "eps": 1.5, "stage_weight": 1,
    },
    "imagenet_resnet50": CNN | {  # imagenet/stronger.yaml; timm's LAMB clips at 1
        "epochs": 300, "batch_size": 8 * 256, "optimizer": "lamb", "learning_rate": 5e-3, "least_learning_rate": 1e-6,
        "weight_decay": 0.02, "warmup": 5, "gradient_clipping": 1, "average": 0.9998,
        "rand_augment": "rand-m7-mstd0.5", "mixup": 0.1, "cutmix": 1, "drop_path_rate": 0.05,
        "smoothing": 0, "binary": True, "eps": 1, "stage_weight": 1,
    },
}  # fmt: skip
IMAGES = {"cifar100": 50_000, "imagenet": 1_281_167}


@pytest.mark.parametrize("name", USED)
def test_a_packaged_recipe_has_the_numbers_that_the_authors_used(name):
    config = load_run(f"vision/{name}")
    recipe, (labels, ofa) = config.recipe, config.objectives
    epochs = recipe.steps * recipe.batch_size / IMAGES[name.split("_")[0]]
    found = {"smoothing": 0, "binary": False, "final_weight": 1, "drop_path_rate": 0}
    for section in (recipe.model_dump(), config.data.augment.model_dump(), config.student.options):
        found |= section
    found |= labels.options() | ofa.options()
    found |= {"epochs": round(epochs, 1), "warmup": round(recipe.warmup * epochs, 1)}
    assert {key: found[key] for key in USED[name]} == USED[name]
    assert [(section.name, section.weight) for section in config.objectives] == [("cross_entropy", 1), ("ofa", 1)]
    assert not config.student.pretrained


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
