"""What each model sees of one image."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd.config.vision_schema import CropSection
from mmkd.vision_distill.views import Preprocessing, scored_box, training_box

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def gradient_image(width=64, height=48):
    """Red grows to the right, green downwards."""
    rows, cols = np.mgrid[0:height, 0:width]
    pixels = np.stack([cols * 255 / (width - 1), rows * 255 / (height - 1), np.zeros_like(rows)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_two_models_see_the_same_part_each_in_its_own_size_and_normalisation():
    image, box = gradient_image(), (16.0, 12.0, 48.0, 36.0)
    small = Preprocessing((16, 16), **PLAIN)(image, box, False)
    large = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")(image, box, False)
    assert small.shape == (3, 16, 16)
    assert large.shape == (3, 32, 32)
    assert large.min() < -0.4  # normalised to -1..1
    same = torch.nn.functional.avg_pool2d(large * 0.5 + 0.5, 2)
    assert (same - small).abs().max() < 0.02


def test_the_box_is_cut_from_the_original_pixels_and_flipped_for_both():
    image = gradient_image()
    seen = Preprocessing((24, 32), **PLAIN)(image, (32.0, 0.0, 64.0, 24.0), False)  # one pixel for one pixel
    original = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(seen, original[:, :24, 32:])
    flipped = Preprocessing((24, 32), **PLAIN)(image, (32.0, 0.0, 64.0, 24.0), True)
    assert torch.equal(flipped, seen.flip(2))


def test_boxes_lie_inside_and_keep_to_scale_and_ratio():
    crop = CropSection(scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = [training_box(64, 48, crop, random.Random(seed)) for seed in range(500)]
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= 64
        assert 0 <= upper < lower <= 48
        assert 0.2 - 1e-9 <= (right - left) * (lower - upper) / (64 * 48) <= 0.6 + 1e-9
        assert 0.5 - 1e-9 <= (right - left) / (lower - upper) <= 2 + 1e-9
    assert len(set(boxes)) == 500
    assert boxes[3] == training_box(64, 48, crop, random.Random(3))


def test_without_a_scale_or_where_no_box_fits_the_whole_image_is_seen():
    assert training_box(64, 48, CropSection(), random.Random(0)) == (0, 0, 64, 48)
    tall = CropSection(scale=(0.9, 0.95), ratio=(0.1, 0.11))
    assert training_box(64, 48, tall, random.Random(0)) == (0, 0, 64, 48)


@pytest.mark.parametrize(("center", "box"), [(None, (0, 0, 64, 48)), (1.0, (8, 0, 56, 48)), (0.5, (20, 12, 44, 36))])
def test_what_is_scored_is_the_whole_image_or_the_central_square(center, box):
    assert scored_box(64, 48, CropSection(center=center)) == box
