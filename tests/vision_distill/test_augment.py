"""Augmentation through timm: the same for both models and after a resume, and mixed labels say what was mixed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from mmkd.config.vision_schema import AugmentSection, CropSection, VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.augment import check_augment, check_sizes
from mmkd.vision_distill.exits import STAGES, Staged
from mmkd.vision_distill.loader import build_loader
from mmkd.vision_distill.methods import build_method
from mmkd.vision_distill.sources import LabelledImage, Listed
from mmkd.vision_distill.views import Preprocessing

SMALL = Preprocessing((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LARGE = Preprocessing((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
GREYS = [0, 51, 102, 255]  # one a class


def batches(tmp_path, teacher=SMALL, start=0, noisy=False, **augment):
    noise = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise[c]) if noisy else Image.new("RGB", (24, 24), (GREYS[c],) * 3) for c in range(4)]
    images = Listed("abcd", [LabelledImage(str(i), pictures[i % 4], i % 4) for i in range(12)])
    return iter(
        build_loader(
            images,
            {"student_pixels": SMALL, "teacher_pixels": teacher},
            CropSection(),
            seed=3,
            batch_size=4,
            micro_batch_size=4,
            rank=0,
            world_size=1,
            start_step=start,
            rejected=tmp_path / "rejected.jsonl",
            augment=AugmentSection(**augment),
        )
    )


def test_both_models_and_a_resumed_run_see_the_same_whatever_was_drawn_elsewhere(tmp_path):
    everything = {"rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 1.0, "mixup": 0.8, "cutmix": 1.0, "noisy": True}
    plain = batches(tmp_path, noisy=True)
    whole = batches(tmp_path, **everything)
    found = [next(whole) for _ in range(3)]
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    resumed = batches(tmp_path, start=1, **everything)
    next(resumed)  # a loader draws its own seed when it starts
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = next(resumed)
    assert torch.equal(found[2]["student_pixels"], again["student_pixels"])
    assert torch.equal(found[2]["labels"], again["labels"])
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    for one in found:
        assert torch.equal(one["student_pixels"], one["teacher_pixels"])
        assert not torch.equal(one["student_pixels"], next(plain)["student_pixels"])


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_shares_of_labels_are_the_shares_of_the_images(tmp_path, mix):
    """An image is of its class's grey all over, so the mean of its pixels is the mean of the greys by share."""
    found = batches(tmp_path, **mix)
    shares = []
    for batch in (next(found) for _ in range(3)):
        assert batch["labels"].shape == (4, 4)
        expected = batch["labels"] @ torch.tensor(GREYS).float() / 255
        torch.testing.assert_close(batch["student_pixels"].mean((1, 2, 3)), expected, atol=1e-5, rtol=1e-5)
        shares.append(batch["labels"].max().item())
    assert min(shares) < 1


def test_losses_take_shares_and_what_needs_one_class_takes_the_larger():
    torch.manual_seed(0)
    logits, shares = torch.randn(2, 3), torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    student, teacher = (Staged(z, z, [z] * STAGES) for z in (logits, torch.randn(2, 3)))  # a stage gives logits here
    expected = -(shares * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(build_method("cross_entropy", {})(student, teacher, shares), expected)
    smooth = build_method("cross_entropy", {"smoothing": 0.1})(student, teacher, shares)
    torch.testing.assert_close(smooth, cross_entropy(logits, 0.9 * shares + 0.1 / 3))
    binary = build_method("cross_entropy", {"smoothing": 0.1, "binary": True})
    targets = 0.9 * shares + 0.1 / 3
    each = -targets * logits.sigmoid().log() - (1 - targets) * (1 - logits.sigmoid()).log()
    torch.testing.assert_close(binary(student, teacher, shares), each.sum() / 6)
    whole = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(binary(student, teacher, torch.tensor([0, 2])), binary(student, teacher, whole))
    ofa, dkd = build_method("ofa", {}), build_method("dkd", {})
    ofa.branches = nn.ModuleList(nn.Identity() for _ in range(STAGES))
    for method in (ofa, dkd):
        assert torch.equal(method(student, teacher, shares), method(student, teacher, torch.tensor([0, 2])))


def config(objective, space="labels", **augment):
    return VisionConfig.model_validate(
        {
            "kind": "vision",
            "student": {"model": "timm:test_vit"},
            "objectives": [{"name": "cross_entropy"}, {"name": objective}],
            "space": {"kind": space},
            "data": {"train": {"source": "digits"}, "augment": augment},
            "recipe": {"steps": 1},
        }
    )


def test_what_cannot_bear_mixed_images_is_refused_by_name():
    check_augment(config("crd", rand_augment="rand-m9", erasing=0.25), 3)
    with pytest.raises(ConfigError, match=r"objectives\[1\] crd needs images of one class"):
        check_augment(config("crd", mixup=0.8), 4)
    with pytest.raises(ConfigError, match=r"space\.kind prompts needs images of one class"):
        check_augment(config("ofa", space="prompts", cutmix=1.0), 4)
    with pytest.raises(ConfigError, match=r"micro_batch_size is 3; .* take an even number"):
        check_augment(config("ofa", mixup=0.8), 3)


def test_a_box_in_pixels_needs_images_of_one_size():
    views = {"student_pixels": SMALL, "teacher_pixels": LARGE}
    check_sizes(AugmentSection(rand_augment="rand-m9", mixup=0.8), views)
    with pytest.raises(ConfigError, match=r"augment\.cutmix draws a box in pixels, .*'teacher': \(32, 32\)"):
        check_sizes(AugmentSection(cutmix=1.0), views)
