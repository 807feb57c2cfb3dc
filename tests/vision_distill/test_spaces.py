"""Logit spaces beside class labels, against their definitions, with a tiny open_clip model and tiny timm models."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import adaptive_avg_pool2d, normalize

from mmkd.config.vision_schema import ClassifierSection, SpaceSection
from mmkd.errors import ConfigError, TrainingError
from mmkd.objectives.ofa import ofa_loss
from mmkd.vision_distill.codebook import FILE, fitted
from mmkd.vision_distill.exits import Stage, Staged, read_staged
from mmkd.vision_distill.methods import Side, build_method
from mmkd.vision_distill.sources import LabelledImage, Listed
from mmkd.vision_distill.space_ofa import SpaceOFA, build_space_method
from mmkd.vision_distill.spaces import (
    Contrastive,
    Patches,
    Prompts,
    SpaceTargets,
    check_space,
    cosine_logits,
    load_contrastive,
)
from mmkd.vision_distill.task import VisionTask
from mmkd.vision_distill.views import Preprocessing
from tests.vision_distill.tiny import SIDE, convnext, images, mixer, resnet, swin, vit

CLASSES = ["red circle", "blue square", "cat", "dog", "tree"]
LABELS = torch.tensor([1, 0, 4, 1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small model of open_clip with random weights, through the adapter."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "mmkd-tiny-pair.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("mmkd-tiny-pair")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "pair.safetensors")
    parts = load_contrastive(ClassifierSection(model=f"open_clip:mmkd-tiny-pair/{folder}/pair.safetensors"), "prompts")
    parts.model.eval().requires_grad_(False)
    return parts


def unit(vector):
    return vector / vector.square().sum().sqrt()


def test_the_adapter_gives_both_towers_as_open_clip_made_them(clip):
    assert (clip.width, clip.size) == (12, (SIDE, SIDE))
    assert clip.scale == pytest.approx(float(clip.model.logit_scale.exp()))
    text = clip.model.encode_text(open_clip.get_tokenizer("mmkd-tiny-pair")(["a cat"]))
    torch.testing.assert_close(clip.model.encode_text(clip.tokenize(["a cat"])), text)


def test_prompts_are_open_clips_zero_shot_logits_over_the_mean_of_templates(clip):
    space = Prompts(clip, CLASSES, templates=["a photo of a {}.", "one {}"])
    pixels = images(4)
    found = space.teach(pixels, LABELS, [None] * 4)
    rows = []
    for name in CLASSES:
        texts = [unit(clip.model.encode_text(clip.tokenize([t]))[0]) for t in (f"a photo of a {name}.", f"one {name}")]
        rows.append(unit((texts[0] + texts[1]) / 2))
    expected = [[clip.scale * unit(image) @ row for row in rows] for image in clip.model.encode_image(pixels)]
    torch.testing.assert_close(found.logits, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.targets, LABELS)


def test_a_bank_of_other_prompts_has_no_target(clip, tmp_path):
    (tmp_path / "bank.txt").write_text("a red thing\n\n a blue thing\na red thing\na wheel\n")
    space = Prompts(clip, CLASSES, bank=str(tmp_path / "bank.txt"))
    found = space.teach(images(2), LABELS[:2], [None] * 2)
    assert found.targets is None
    assert found.logits.shape == (2, 3)
    (tmp_path / "bank.txt").write_text("one\n")
    with pytest.raises(ConfigError, match="has 1 different prompts; two are the least"):
        Prompts(clip, CLASSES, bank=str(tmp_path / "bank.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        Prompts(clip, CLASSES, bank=str(tmp_path / "none.txt"))


def test_contrast_is_over_the_batchs_different_captions_and_the_own_one_is_the_target(clip):
    space = Contrastive(clip, CLASSES, template="this is {}")
    pixels = images(4)
    found = space.teach(pixels, LABELS, [None, "a house", None, None])  # labels 1, 0, 4, 1
    texts = ["this is blue square", "a house", "this is tree"]
    rows = torch.stack([unit(clip.model.encode_text(clip.tokenize([text]))[0]) for text in texts])
    torch.testing.assert_close(found.rows, rows, atol=1e-5, rtol=1e-5)
    assert found.targets.tolist() == [0, 1, 2, 0]
    expected = clip.scale * normalize(clip.model.encode_image(pixels), dim=-1) @ rows.T
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


def naive_ofa(ours, theirs, target, eps, form):
    """methods of Hao et al. for one sample: the formula, nothing else."""
    p, log_q = theirs.softmax(-1), ours.log_softmax(-1)
    total = 0.0
    for i in range(len(p)):
        if form == "paper":
            weight = (1 + p[i]) ** eps if i == target else p[i]
        else:
            weight = (1 + p[i]) ** eps - 1 if i == target else p[i] ** eps
        total = total - weight * log_q[i]
    return total


def gradients(loss, modules):
    parameters = [p for module in modules for p in module.parameters()]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize(("form", "eps"), [("paper", 1.4), ("released", 1.0)])
@pytest.mark.parametrize("kind", ["contrastive", "prompts"])
@pytest.mark.parametrize("student", [resnet, vit])
def test_ofa_in_a_space_of_images_is_the_definition_in_value_and_gradient(clip, kind, student, form, eps):
    torch.manual_seed(0)
    space = {"contrastive": Contrastive, "prompts": Prompts}[kind](clip, CLASSES)
    method = SpaceOFA(space, form=form, eps=eps, final_weight=2.0, stage_weight=0.5)
    task = VisionTask(student(), (SIDE, SIDE), [(method, 1.0)], clip.model, clip.size, space=space).eval()
    given = {"student_pixels": images(4), "teacher_pixels": images(4, seed=1), "labels": LABELS, "captions": [None] * 4}
    loss = task(given)
    staged = read_staged(task.student, task.student_exits, given["student_pixels"])
    said = space.teach(given["teacher_pixels"], LABELS, [None] * 4)
    vectors = [branch(stage) for branch, stage in zip(method.branches, staged.stages, strict=True)]
    naive = torch.zeros(())
    for weight, vector in [*((0.5, v) for v in vectors), (2.0, method.final(staged.embedding))]:
        for n in range(4):
            logits = torch.stack([said.scale * unit(vector[n]) @ row for row in said.rows])
            naive = naive + weight / 4 * naive_ofa(logits, said.logits[n], said.targets[n], eps, form)
    torch.testing.assert_close(loss, naive, atol=1e-4, rtol=1e-4)
    modules = [task.student, method]
    for got, wanted in zip(gradients(loss, modules), gradients(naive, modules), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
    assert task.report["teacher_accuracy"].count == 4
    assert not any("space" in name for name, _ in task.named_parameters())


@pytest.mark.parametrize("student_grid", [(3, 7), (5, 5), (2, 3)])
def test_the_dense_loss_is_soft_cross_entropy_of_each_patch_of_the_coarser_grid(student_grid):
    """Also where neither grid divides the other."""
    torch.manual_seed(0)
    teacher_grid, codes, width = (5, 4), 6, 3
    rows = normalize(torch.randn(codes, width), dim=-1)
    features = torch.randn(2, width, *teacher_grid)
    patches = normalize(features.movedim(1, 3).flatten(0, 2), dim=-1)
    said = SpaceTargets(20.0 * patches @ rows.T, rows, 20.0, None, teacher_grid)
    space = Patches.__new__(Patches)
    space.width = width
    method = SpaceOFA(space, form="released")
    exits = [type("E", (), {"channels": 4})() for _ in range(4)]
    method.build_heads(Side(exits, 9), Side([], width), 5)
    maps = [torch.randn(2, 4, *student_grid, requires_grad=True) for _ in range(4)]
    stages = [Stage(one, one.new_zeros(2, 0, 4)) for one in maps]
    loss = method(Staged(torch.zeros(2, 5), torch.zeros(2, 9), stages), said, torch.zeros(2))
    grid = tuple(min(a, b) for a, b in zip(student_grid, teacher_grid, strict=True))
    theirs = adaptive_avg_pool2d(said.logits.view(2, *teacher_grid, codes).permute(0, 3, 1, 2), grid)
    naive = torch.zeros(())
    for head, one in zip([*method.branches, method.final], maps, strict=True):
        small = head(adaptive_avg_pool2d(one, grid))
        for n in range(2):
            for i in range(grid[0]):
                for j in range(grid[1]):
                    ours = 20.0 * unit(small[n, :, i, j]) @ rows.T
                    p = theirs[n, :, i, j].softmax(-1)
                    naive = naive - (p * ours.log_softmax(-1)).sum() / (2 * grid[0] * grid[1])
    torch.testing.assert_close(loss, naive, atol=1e-4, rtol=1e-4)
    for got, wanted in zip(*(torch.autograd.grad(x, maps) for x in (loss, naive)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)


def test_one_place_of_the_teacher_moves_only_that_place_of_the_student():
    """What pooled logits lose."""
    rows = torch.eye(3)
    space = Patches.__new__(Patches)
    space.width = 3
    method = SpaceOFA(space, form="released", stage_weight=0.0)
    method.build_heads(Side([type("E", (), {"channels": 3})() for _ in range(4)], 9), Side([], 3), 5)
    found = []
    for place in (0, 3):
        logits = torch.zeros(4, 3)
        logits[place, 1] = 9.0
        one = torch.ones(1, 3, 2, 2, requires_grad=True)
        stages = [Stage(one, one.new_zeros(1, 0, 3))] * 4
        said = SpaceTargets(logits, rows, 5.0, None, (2, 2))
        method(Staged(torch.zeros(1, 5), torch.zeros(1, 9), stages), said, torch.zeros(1)).backward()
        found.append(one.grad.abs().sum(1).flatten())
    assert found[0].argmax() != found[1].argmax() or not torch.allclose(*found)
    torch.testing.assert_close(found[0][0], found[1][3])


def pictures(count=12):
    chance = np.random.RandomState(0)
    drawn = [Image.fromarray(chance.randint(0, 255, (40, 40, 3)).astype(np.uint8)) for _ in range(count)]
    return Listed(CLASSES, [LabelledImage(str(i), picture, i % 5) for i, picture in enumerate(drawn)])


TEACHER = {"model": "timm:one"}
VIEW = Preprocessing((SIDE, SIDE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("teacher", [vit, convnext, swin, mixer])
def test_a_codebook_is_made_once_and_is_centres_of_the_teachers_patches(teacher, tmp_path):
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    space = Patches(teacher().eval(), (SIDE, SIDE), codes=4, images=9)
    rows = fitted(space, pictures(), VIEW, 3, tmp_path, TEACHER)
    assert rows.shape == (4, space.width)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4))
    again = fitted(space, pictures(), VIEW, 99, tmp_path, TEACHER)  # another seed, but it is there
    assert torch.equal(rows, again)
    (tmp_path / FILE).unlink()
    torch.testing.assert_close(fitted(space, pictures(), VIEW, 3, tmp_path, TEACHER), rows)
    space.rows = rows
    said = space.teach(images(2), LABELS[:2], [None] * 2)
    assert said.logits.shape == (2 * said.grid[0] * said.grid[1], 4)
    features = normalize(space.features(images(2)).movedim(1, 3).flatten(0, 2), dim=-1)
    torch.testing.assert_close(said.logits, 20.0 * features @ rows.T, atol=1e-4, rtol=1e-4)


def test_a_codebook_of_another_teacher_or_of_other_images_is_refused(tmp_path):
    pytest.importorskip("sklearn")
    space = Patches(vit().eval(), (SIDE, SIDE), codes=4, images=9)
    fitted(space, pictures(), VIEW, 3, tmp_path, TEACHER)
    with pytest.raises(TrainingError, match=r"was made with teacher \{'model': 'timm:one'\}, and now it is .*timm:two"):
        fitted(space, pictures(), VIEW, 3, tmp_path, {"model": "timm:two"})
    space.images = 8
    with pytest.raises(TrainingError, match=r"was made with space\.images 9, and now it is 8"):
        fitted(space, pictures(), VIEW, 3, tmp_path, TEACHER)


def test_a_codebook_is_made_of_the_images_that_can_be_read(tmp_path):
    pytest.importorskip("sklearn")
    whole, space = pictures(), Patches(vit().eval(), (SIDE, SIDE), codes=4, images=12)
    broken = Listed(CLASSES, [LabelledImage("0", b"no image", 0), *(whole[i] for i in range(1, 12))])
    rest = Listed(CLASSES, [whole[i] for i in range(1, 12)])
    (tmp_path / "rest").mkdir()
    rows = fitted(space, broken, VIEW, 3, tmp_path, TEACHER)
    torch.testing.assert_close(rows, fitted(space, rest, VIEW, 3, tmp_path / "rest", TEACHER))


def test_a_codebook_of_another_run_or_none_is_refused(tmp_path):
    pytest.importorskip("sklearn")
    space = Patches(vit().eval(), (SIDE, SIDE), codes=4, images=2)
    save_file({"codes": torch.zeros(5, 32)}, tmp_path / FILE)
    with pytest.raises(TrainingError, match=r"has codes of \[5, 32\], wanted \[4, 32\]"):
        fitted(space, pictures(), VIEW, 0, tmp_path, TEACHER)
    (tmp_path / FILE).write_bytes(b"none")
    with pytest.raises(TrainingError, match="is broken"):
        fitted(space, pictures(), VIEW, 0, tmp_path, TEACHER)
    (tmp_path / FILE).unlink()
    many = Patches(vit().eval(), (SIDE, SIDE), codes=100_000, images=2)
    with pytest.raises(ConfigError, match=r"space.codes is 100000, and 2 images have 512 patches: lower it"):
        fitted(many, pictures(), VIEW, 0, tmp_path, TEACHER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("student", [resnet, vit])
def test_a_task_in_the_dense_space_trains_the_student_and_leaves_the_teacher(student):
    torch.manual_seed(0)
    teacher = swin()
    space = Patches(teacher.eval(), (SIDE, SIDE), codes=7)
    space.rows = normalize(torch.randn(7, space.width), dim=-1)
    method = build_space_method(space, "ofa", {"form": "released"}, "objectives[0]")
    methods = [(method, 1.0), (build_method("cross_entropy", {}), 1.0)]
    task = VisionTask(student(), (SIDE, SIDE), methods, teacher, (SIDE, SIDE), space=space)
    given = {"student_pixels": images(4), "teacher_pixels": images(4), "labels": LABELS, "captions": [None] * 4}
    task(given).backward()
    assert all(p.grad is not None for p in task.methods.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert "teacher_accuracy" not in task.report
    assert not {id(p) for p in task.parameters()} & {id(p) for p in teacher.parameters()}


def test_under_bf16_the_logits_of_a_space_stay_fp32():
    vectors, rows = torch.randn(4, 8), normalize(torch.randn(3, 8), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_logits(vectors, rows, 100.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 100 * normalize(vectors, dim=-1) @ rows.T)


def test_without_a_target_nothing_is_enhanced(clip, tmp_path):
    (tmp_path / "bank.txt").write_text("a\nb\n")
    space = Prompts(clip, CLASSES, bank=str(tmp_path / "bank.txt"))
    for options in ({}, {"form": "released", "eps": 1.2}, {"form": "released", "eps": [1, 1, 1, 1, 1.1]}):
        with pytest.raises(ConfigError, match="there is no target to enhance; write form: released and eps: 1"):
            SpaceOFA(space, **options)
    ours, theirs = torch.randn(5, 4), torch.randn(5, 4)
    alike = [ofa_loss(ours, theirs, torch.full((5,), i), eps=1.0, form="released") for i in range(4)]
    soft = -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1)
    for one in alike:
        torch.testing.assert_close(one, soft)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "patch"}, r"space.kind is 'patch'; allowed: labels, .*, prompts. Did you mean patches"),
        ({"kind": "labels", "codes": 3}, "space.codes is not a field of space labels"),
        ({"kind": "patches", "code": 3}, "space.code is not a field of space patches. Did you mean codes"),
        ({"kind": "prompts", "parts": 3}, "space.parts is not a field of space prompts"),
    ],
)  # fmt: skip
def test_a_section_that_says_nothing_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        check_space(SpaceSection(**section))


def test_what_does_not_fit_a_space_is_refused(clip):
    with pytest.raises(ConfigError, match=r"objectives\[0\].name is kd, which compares two classifiers"):
        build_space_method(Prompts(clip, CLASSES), "kd", {}, "objectives[0]")
    with pytest.raises(ConfigError, match="has no place for the class"):
        Contrastive(clip, CLASSES, template="a photo")
    with pytest.raises(ConfigError, match=r"has no text tower; space: contrastive takes open_clip:MODEL/TAG"):
        load_contrastive(ClassifierSection(model="timm:resnet18"), "contrastive")
    with pytest.raises(ConfigError, match=r"codes=0, expected a whole number >= 1"):
        Patches(vit(), (SIDE, SIDE), codes=0)


def test_codebooks_are_plain_tensors(tmp_path):
    pytest.importorskip("sklearn")
    space = Patches(resnet().eval(), (SIDE, SIDE), codes=3, images=4)
    fitted(space, pictures(), VIEW, 0, tmp_path, TEACHER)
    assert list(load_file(tmp_path / FILE)) == ["codes"]
