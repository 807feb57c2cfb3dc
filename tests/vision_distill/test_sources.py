"""Labelled images from each kind of source, and batches of them."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import avg_pool2d

from mmkd import assets
from mmkd.config.vision_schema import CropSection, ImagesSection
from mmkd.errors import AssetError, ConfigError, DataError
from mmkd.vision_distill.loader import build_loader, decoded, scored_batches
from mmkd.vision_distill.sources import open_images
from mmkd.vision_distill.views import Preprocessing

SMALL = Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LARGE = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def opened(**options):
    return open_images(ImagesSection(**options), at="data.train")


@pytest.fixture
def pictures(tmp_path):
    """Two classes in a folder each, three images a class, of another grey each."""
    for label, name in enumerate(["cat", "dog"]):
        for number in range(3):
            place = tmp_path / "train" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 12), (40 * (3 * label + number),) * 3).save(place)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def slopes(tmp_path):
    """Six pictures of one class that grow redder to the right and greener downwards: a colour is a place."""
    red, green = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    pixels = np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8)
    (tmp_path / "slope").mkdir()
    for number in range(6):
        Image.fromarray(pixels).save(tmp_path / "slope" / f"{number}.png")
    return opened(source="folder", path=str(tmp_path))


def loader(images, tmp_path, start=0, rank=0, world=1, **options):
    options = {"seed": 3, "batch_size": 4, "micro_batch_size": 2} | options
    views = {"student_pixels": SMALL, "teacher_pixels": LARGE}
    crop = CropSection(scale=(0.5, 1.0), flip=0.5)
    rejected = tmp_path / "rejected.jsonl"
    return build_loader(
        images, views, crop, rank=rank, world_size=world, start_step=start, rejected=rejected, **options
    )


def test_folds_of_a_source_share_no_image_and_leave_none_out(pictures):
    whole = opened(source="folder", path=str(pictures), split="train")
    folds = [opened(source="folder", path=str(pictures), split="train", fold=(i, 4)) for i in range(4)]
    assert [image.id for image in folds[1]] == ["cat/1.png", "dog/2.png"]
    assert sorted(image.id for fold in folds for image in fold) == sorted(image.id for image in whole)
    assert folds[3].classes == whole.classes
    with pytest.raises(DataError, match=r"no images in fold \[7, 8\]"):
        opened(source="folder", path=str(pictures), split="train", fold=(7, 8))
    with pytest.raises(ValidationError, match=r"\[4, 4\]; allowed: \[i, n\] with 0 <= i < n"):
        ImagesSection.model_validate({"source": "digits", "fold": [4, 4]})


def test_a_folder_has_a_class_for_each_folder_in_it(pictures):
    images = opened(source="folder", path=str(pictures), split="train")
    assert images.classes == ["cat", "dog"]
    assert [image.label for image in images] == [0, 0, 0, 1, 1, 1]
    assert images[0].id == "cat/0.png"
    with pytest.raises(DataError, match="val is no folder"):
        opened(source="folder", path=str(pictures), split="val")
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.train: source folder .* has no images"):
        opened(source="folder", path=str(pictures / "empty"))


def test_a_saved_data_set_names_its_classes_and_keeps_images_encoded(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    rows = {"image": [Image.new("RGB", (4, 4), (9, 9, 9))] * 2, "label": [1, 0], "text": ["x", "y"]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path / "set"))
    images = opened(source="datasets", path=str(tmp_path / "set"))
    assert images.classes == ["a", "b"]
    assert [images[0].label, images[1].label] == [1, 0]
    assert isinstance(images[0].image, bytes)
    assert decoded(images[0]).getpixel((0, 0)) == (9, 9, 9)
    with pytest.raises(ConfigError, match=r"column text of .* is no ClassLabel"):
        opened(source="datasets", path=str(tmp_path / "set"), label="text")
    with pytest.raises(ConfigError, match="has no column pic; it has image, label, text"):
        opened(source="datasets", path=str(tmp_path / "set"), image="pic")


def test_digits_are_split_for_good_and_every_class_is_on_both_sides():
    pytest.importorskip("sklearn")
    train, test = opened(source="digits"), opened(source="digits", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert not {image.id for image in train} & {image.id for image in test}
    assert len(Counter(image.label for image in test)) == 10
    assert np.array(train[0].image).max() >= 239  # 15 or 16 of 16


def test_easyvqa_has_24_classes_of_shape_and_colour():
    try:
        assets.path("easyvqa")
    except AssetError:
        pytest.skip("needs the asset easyvqa")
    images = opened(source="easyvqa", split="test")
    assert len(images.classes) == len(set(images.classes)) == 24
    assert {image.label for image in images} == set(range(24))
    questions = json.loads((assets.path("easyvqa") / "test" / "questions.json").read_text())
    told = {number: answer for text, answer, number in questions if text.startswith("what color is the")}
    checked = [image for image in images if int(image.id.split("/")[1]) in told]
    assert len(checked) > 100
    assert all(images.classes[i.label].split()[0] == told[int(i.id.split("/")[1])] for i in checked)


def test_both_sides_of_a_batch_see_the_same_crop(slopes, tmp_path):
    redder_to_the_right = []
    for batch in islice(loader(slopes, tmp_path), 4):
        student, teacher = batch["student_pixels"], batch["teacher_pixels"] * 0.5 + 0.5  # each undone: 0 to 1
        assert (student.shape, teacher.shape) == ((2, 3, 8, 8), (2, 3, 16, 16))
        torch.testing.assert_close(avg_pool2d(teacher, 2), student, atol=0.01, rtol=0)
        redder_to_the_right += (student[:, 0, :, -1] > student[:, 0, :, 0]).all(-1).tolist()
    assert set(redder_to_the_right) == {True, False}  # some are flipped and some are not


def test_an_image_is_decoded_once_for_both_sides(slopes, tmp_path, monkeypatch):
    opens, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opens.append(1) or real(*args, **options))
    batches = list(islice(loader(slopes, tmp_path), 3))
    assert len(opens) == sum(len(batch["sample_ids"]) for batch in batches) == 6


def test_a_batch_has_the_label_of_each_of_its_images(pictures, tmp_path):
    batch = next(iter(loader(opened(source="folder", path=str(pictures), split="train"), tmp_path)))
    assert [0 if name.startswith("cat") else 1 for name in batch["sample_ids"]] == batch["labels"].tolist()


def test_a_resumed_run_and_two_ranks_see_what_one_run_sees(tmp_path):
    pytest.importorskip("sklearn")
    images = opened(source="digits")
    whole = list(islice(loader(images, tmp_path), 6))  # three steps of two micro batches
    resumed = list(islice(loader(images, tmp_path, start=1), 4))
    ranks = [list(islice(loader(images, tmp_path, rank=rank, world=2), 3)) for rank in (0, 1)]
    for a, b in zip(whole[2:], resumed, strict=True):
        assert torch.equal(a["teacher_pixels"], b["teacher_pixels"])
    for step in range(3):
        for rank in (0, 1):
            assert torch.equal(whole[2 * step + rank]["student_pixels"], ranks[rank][step]["student_pixels"])


def test_a_broken_image_is_set_aside_in_training_and_stops_a_score(pictures, tmp_path):
    (pictures / "train" / "dog" / "1.png").write_bytes(b"no image")
    images = opened(source="folder", path=str(pictures), split="train")
    seen = [name for batch in islice(loader(images, tmp_path), 6) for name in batch["sample_ids"]]
    assert "dog/1.png" not in seen
    line = json.loads((tmp_path / "rejected.jsonl").read_text().splitlines()[0])
    assert (line["source"], line["id"], line["kind"]) == ("data.train", "dog/1.png", "image unreadable")
    with pytest.raises(DataError, match=r"dog/1\.png"):
        list(scored_batches(images, {"pixels": SMALL}, CropSection(), 4))


def test_every_test_image_is_scored_once(pictures):
    images = opened(source="folder", path=str(pictures), split="train")
    batches = list(scored_batches(images, {"pixels": SMALL}, CropSection(), 4))
    assert [name for batch in batches for name in batch["sample_ids"]] == [image.id for image in images]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "digit"}, r"data\.train\.source is 'digit'; allowed: .* Did you mean digits\?"),
        ({"source": "digits", "splt": "test"}, r"data\.train\.splt is not a field of digits\. Did you mean split\?"),
        ({"source": "digits", "split": "val"}, "digits has the splits train and test"),
        ({"source": "folder"}, r"data\.train\.path is missing; folder needs it"),
    ],
)
def test_bad_sources_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options)
