"""Runs of `kind: vision` from config to scored folder: digits, a few steps, small models of timm."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import ranks
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from mmkd.config.vision_schema import ClassifierSection, VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.classifiers import load_classifier, load_patch_teacher, save_classifier
from mmkd.vision_distill.spaces import Patches

pytest.importorskip("sklearn")

SIDE = 32
DIGITS = [str(digit) for digit in range(10)]


def go(settings, resume=False):
    from mmkd.vision_distill.run import train

    return str(train(VisionConfig.model_validate(settings), resume))


def go_with_pair(settings, folder):
    """`go` where open_clip knows the model whose config lies in `folder`."""
    open_clip.add_model_config(Path(folder))
    return go(settings)


def run(settings, world=1, resume=False):
    """A whole run; the losses of its steps. Raises the first error that a rank met."""
    for result in ranks.on_ranks(world, ranks.call, __file__, "go", settings, resume):
        if isinstance(result, Exception):
            raise result
    return ranks.losses(settings)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A CNN with random weights, saved as a run saves it; normalised other than the student."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    section = ClassifierSection(model="timm:test_resnet", image_size=48, pretrained=False)
    parts = load_classifier(section, DIGITS, "student")
    parts.mean, parts.std = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
    save_classifier(parts, parts.model.state_dict(), DIGITS, folder)
    return folder


@pytest.fixture
def settings(tmp_path, teacher):
    def build(name="run", **sections):
        base = {
            "kind": "vision",
            "run": {"dir": str(tmp_path / name), "seed": 3},
            "student": {
                "model": "timm:test_vit",
                "image_size": SIDE,
                "pretrained": False,
                "options": {"patch_size": 8, "depth": 4},
            },
            "teacher": {"model": str(teacher)},
            "objectives": [{"name": "cross_entropy"}, {"name": "ofa", "form": "released", "stage_weight": 0.1}],
            "data": {"train": {"source": "digits"}, "crop": {"scale": [0.7, 1.0]}},
            "recipe": {"steps": 4, "batch_size": 8, "learning_rate": 1e-3},
            "training": {"precision": "fp32", "log_every": 1, "save_every": 2, "device": "cpu"},
        }
        return base | sections

    return build


def test_a_saved_classifier_comes_back_with_its_classes_size_and_normalisation(teacher):
    parts = load_classifier(ClassifierSection(model=str(teacher)), None, "teacher")
    assert parts.classes == DIGITS
    assert (parts.size, parts.mean, parts.std) == ((48, 48), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    again = timm.create_model(f"local-dir:{teacher}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), parts.model.state_dict().values()))


@pytest.mark.slow
def test_a_run_leaves_a_student_that_timm_loads_alone_and_its_scores(settings):
    config = settings(data={"train": {"source": "digits"}, "test": {"source": "digits", "split": "test"}})
    losses = run(config)
    folder = Path(config["run"]["dir"])
    assert len(losses) == 4
    student = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    assert student.pretrained_cfg["label_names"] == DIGITS
    assert (student.patch_embed.patch_size, len(student.blocks)) == ((8, 8), 4)
    with safe_open(folder / "model" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(student.state_dict())  # no branch, nothing of the teacher
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["student"]["images"] == scores["teacher"]["images"] == 359
    line = ranks.lines(config)[-1]
    assert {"accuracy", "teacher_accuracy", "agree", "ofa", "cross_entropy", "images_per_second"} <= set(line)


@pytest.mark.slow
def test_a_teacher_that_no_objective_asks_need_not_be_there(settings):
    data = {"train": {"source": "digits"}, "test": {"source": "digits", "split": "test"}}
    config = settings(teacher={"model": "runs/not-trained-yet"}, objectives=[{"name": "cross_entropy"}], data=data)
    run(config)
    assert list(json.loads((Path(config["run"]["dir"]) / "scores.json").read_text())) == ["student"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [{}, {"average": 0.9, "optimizer": "lamb", "schedule": "step", "drops": [0.5]}])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(settings, recipe):
    import shutil

    config = settings(deepspeed={"stage": 0 if recipe else 1})
    config["recipe"] |= recipe
    whole = run(config)
    folder = Path(config["run"]["dir"])
    weights = (folder / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "distill" / "checkpoint-4")
    assert run(config, resume=True) == pytest.approx(whole, rel=1e-6)
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_lamb_starts_where_the_task_multiplies_in_bf16(settings):
    config = settings(deepspeed={"stage": 0}, teacher=None, objectives=[{"name": "cross_entropy"}])
    config["recipe"] |= {"optimizer": "lamb", "steps": 1}
    config["training"] |= {"precision": "bf16"}
    assert len(run(config)) == 1


@pytest.mark.slow
def test_a_run_patch_by_patch_goes_on_with_its_codebook_and_leaves_a_student(settings):
    """The teacher's classes need not be those of the data."""
    import shutil

    objectives = [{"name": "cross_entropy"}, {"name": "ofa", "form": "released", "stage_weight": 0.1}]
    test = {"train": {"source": "digits"}, "test": {"source": "digits", "split": "test"}}
    config = settings(objectives=objectives, space={"kind": "patches", "codes": 8, "images": 20}, data=test)
    whole = run(config)
    folder = Path(config["run"]["dir"])
    codes = (folder / "codebook.safetensors").read_bytes()
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores) == ["student"]
    line = ranks.lines(config)[-1]
    assert {"ofa", "cross_entropy"} <= set(line)
    assert "teacher_accuracy" not in line
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "distill" / "checkpoint-4")
    assert run(config, resume=True) == pytest.approx(whole, rel=1e-6)
    assert (folder / "codebook.safetensors").read_bytes() == codes


@pytest.mark.slow
def test_patches_are_learned_from_a_tower_of_transformers(settings, tmp_path):
    """Normalised as its own processor says; its features are those that a vision-language model would read."""
    tower, processor = tmp_path / "clip", {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=48, patch_size=16)).save_pretrained(tower)
    CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size=48, image_mean=processor["mean"], image_std=processor["std"]
    ).save_pretrained(tower)
    parts = load_patch_teacher(ClassifierSection(model=f"hf:{tower}"))
    assert (parts.size, parts.mean, parts.std) == ((48, 48), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    pixels = torch.randn(2, 3, 48, 48)
    states = CLIPVisionModel.from_pretrained(tower)(pixels, output_hidden_states=True).hidden_states
    found = Patches(parts.model, parts.size, codes=8).features(pixels)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), states[-2][:, 1:])
    config = settings(
        teacher={"model": f"hf:{tower}"},
        space={"kind": "patches", "codes": 8, "images": 20},
        data={"train": {"source": "digits"}},
    )
    run(config)
    assert all(line["ofa"] > 0 for line in ranks.lines(config))
    with pytest.raises(ConfigError, match=r"teacher\.options are of timm alone"):
        load_patch_teacher(ClassifierSection(model=f"hf:{tower}", options={"depth": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("space", ["contrastive", "prompts"])
def test_a_student_learns_against_the_text_tower_of_a_contrastive_teacher(settings, tmp_path, space):
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "mmkd-run-pair.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    pair = open_clip.create_model("mmkd-run-pair").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in pair.items()}, tmp_path / "pair.safetensors")
    config = settings(
        teacher={"model": f"open_clip:mmkd-run-pair/{tmp_path}/pair.safetensors"},
        space={"kind": space},
        data={"train": {"source": "digits"}, "test": {"source": "digits", "split": "test"}},
    )
    [result] = ranks.on_ranks(1, ranks.call, __file__, "go_with_pair", config, str(tmp_path))
    assert not isinstance(result, Exception), result
    lines = ranks.lines(config)
    assert len(lines) == 4
    assert all(line["ofa"] > 0 for line in lines)
    assert list(json.loads((Path(config["run"]["dir"]) / "scores.json").read_text())) == ["student"]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_launcher_trains_two_ranks_on_a_folder_of_images(settings, tmp_path):
    for number, name in enumerate(DIGITS):
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        for shade in range(4):
            Image.new("L", (20, 20), 20 * number + shade).save(folder / f"{shade}.png")
    config = settings(data={"train": {"source": "folder", "path": str(tmp_path / "pictures"), "split": "train"}})
    file = tmp_path / "vision.yaml"
    file.write_text(yaml.safe_dump(config))
    with ranks.free_port() as port:
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(port)]
        command = [*launcher, "--module", "mmkd", "distill", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert len(ranks.losses(config)) == 4
    student = timm.create_model(f"local-dir:{Path(config['run']['dir']) / 'model'}", pretrained=True)
    assert student.pretrained_cfg["label_names"] == DIGITS


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [1, 3])
def test_two_ranks_and_accumulation_learn_what_one_process_learns(settings, zero):
    """By every method that looks at an image by itself; `dist`, `crd` and `rkd` compare those of a micro batch."""
    recipe = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3}
    names = [{"name": name} for name in ("cross_entropy", "kd", "dkd", "fitnet")]
    objectives = [*names, {"name": "ofa", "form": "released", "stage_weight": 0.1}]
    one = run(settings("one", recipe=recipe, objectives=objectives))
    two = settings("two", recipe=recipe | {"micro_batch_size": 2}, objectives=objectives, deepspeed={"stage": zero})
    assert run(two, world=2) == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(settings, tmp_path):
    folder = tmp_path / "pictures" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    config = settings(data={"train": {"source": "folder", "path": str(folder.parent)}})
    with pytest.raises(
        ConfigError, match=r"teacher tells 10 classes apart \(0, 1, 2 \.\.\), the data has 1 \(cat \.\.\)"
    ):
        run(config)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": "timm:test_resnt"}, "timm has no 'test_resnt'. Did you mean test_resnet"),
        ({"model": "hf:org/name"}, r"student\.model is 'hf:org/name'; allowed: timm:NAME"),
        ({"model": "runs/none"}, "is not of the form source:name@revision"),
        ({"model": "timm:test_vit", "pretrained": False, "options": {"depht": 3}}, "test_vit .*depht"),
    ],
)
def test_a_model_that_is_not_there_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        load_classifier(ClassifierSection(**section), DIGITS, "student")
