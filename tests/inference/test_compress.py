"""`mmkd compress`: a file an image, started again without doing anything twice, broken images set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmkd.errors import ConfigError, DataError
from mmkd.inference.compress import compress_files, list_jobs
from mmkd.models import VocoCache


@pytest.fixture
def images(tmp_path, picture) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.png", "deep/a.png"]):
        (folder / name).write_bytes(picture(seed))
    (folder / "notes.txt").write_text("no image")
    return folder


def counts(outcome) -> tuple[int, int, int]:
    return outcome.compressed, outcome.kept, outcome.bad


def test_a_question_is_answered_from_the_file_as_from_the_image(tmp_path, images, model_path, reader):
    outcome = compress_files(model_path, [images], tmp_path / "out", tokens=4, batch_size=2)
    assert counts(outcome) == (3, 0, 0)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    answers = set()
    for name in ("a.png", "b.png", "deep/a.png"):
        inputs = reader.inputs(messages, [(images / name).read_bytes()])
        expected = reader.loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8)
        inputs["voco_cache"] = VocoCache.load(str(tmp_path / "out" / f"{name}.safetensors"))
        answered = reader.loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8)
        assert torch.equal(answered, expected)
        answers.add(tuple(answered[0].tolist()))
    assert len(answers) > 1


def test_the_outcome_says_what_an_image_became(tmp_path, images, model_path):
    outcome = compress_files(model_path, [images / "a.png"], tmp_path / "out", tokens=2)
    # 2 layers x (K and V) x 2 heads x 2 tokens x 8 numbers x 4 bytes
    assert str(outcome) == "compressed 1, already there 0, set aside 0 · 4 -> 2 tokens, 512 bytes an image"
    assert VocoCache.load(str(tmp_path / "out" / "a.png.safetensors")).tokens == 2


def test_a_second_run_does_only_what_is_missing_torn_changed_or_of_other_tokens(tmp_path, images, model_path, picture):
    out = tmp_path / "out"
    assert counts(compress_files(model_path, [images], out, tokens=2)) == (3, 0, 0)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert counts(compress_files(model_path, [images], out, tokens=2)) == (0, 3, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == written

    torn = out / "a.png.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    (out / "b.png.safetensors").write_bytes(b"")
    assert counts(compress_files(model_path, [images], out, tokens=2)) == (2, 1, 0)
    (images / "a.png").write_bytes(picture(9))
    assert counts(compress_files(model_path, [images], out, tokens=2)) == (1, 2, 0)
    (out / "b.png.safetensors").unlink()
    assert counts(compress_files(model_path, [images], out, tokens=2)) == (1, 2, 0)
    assert counts(compress_files(model_path, [images], out, tokens=3)) == (3, 0, 0)
    assert not list(out.rglob("*.partial"))


def test_files_of_another_model_are_made_again(tmp_path, images, model_path, make_model):
    compress_files(model_path, [images], tmp_path / "out", tokens=2)
    assert counts(compress_files(make_model(3), [images], tmp_path / "out", tokens=2)) == (3, 0, 0)


def test_a_broken_image_is_set_aside_with_its_reason_and_tried_again(tmp_path, images, model_path, picture):
    out, broken = tmp_path / "out", images / "c.png"
    broken.write_bytes(picture(5, (64, 64))[:2000])
    outcome = compress_files(model_path, [images, tmp_path / "nowhere.png"], out, tokens=1)
    assert counts(outcome) == (3, 0, 2)
    assert "set aside 2" in str(outcome)
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {(Path(line["source"]).name, line["kind"]) for line in lines} == {
        ("c.png", "image unreadable"),
        ("nowhere.png", "image missing"),
    }
    broken.write_bytes(picture(5))
    assert counts(compress_files(model_path, [images], out, tokens=1)) == (1, 3, 0)


def test_clearly_more_than_a_tenth_of_broken_images_stops_and_keeps_what_is_done(tmp_path, model_path, picture):
    files = [tmp_path / f"{number:03}.png" for number in range(80)]
    for number, file in enumerate(files):
        file.write_bytes(b"broken" if number % 4 == 0 else picture(number, (8, 8)))
    with pytest.raises(DataError, match=r"14 of 53 images could not be read, more than 10%.*rejected\.jsonl"):
        compress_files(model_path, files, tmp_path / "out", tokens=1, batch_size=16)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 39
    for number, file in enumerate(files):
        if number % 40:  # two stay broken
            file.write_bytes(picture(number, (8, 8)))
    assert counts(compress_files(model_path, files, tmp_path / "out", tokens=1)) == (39, 39, 2)


def test_nothing_but_broken_images_is_an_error(tmp_path, model_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 1 images could be read"):
        compress_files(model_path, [tmp_path / "a.png"], tmp_path / "out")


def test_two_images_of_one_name_are_refused_before_anything_is_done(tmp_path, images, model_path):
    with pytest.raises(ConfigError, match=r"a\.png and .*a\.png would both be .*a\.png\.safetensors"):
        compress_files(model_path, [images / "a.png", images / "deep" / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_a_folder_only_files_are_listed_that_can_be_read(tmp_path, images, picture):
    for suffix in (".pdf", ".mpg", ".h5", ".psd", ".ico", ".tga", ".eps"):
        (images / f"other{suffix}").write_bytes(b"what Pillow has a name for")
    for name in ("c.JPG", "d.mpo", "e.webp", "f.tif"):
        (images / name).write_bytes(picture(1))
    found = {str(job.source.relative_to(images)) for job in list_jobs([images], tmp_path / "out")}
    assert found == {"a.png", "b.png", "deep/a.png", "c.JPG", "d.mpo", "e.webp", "f.tif"}


def test_a_folder_without_images_is_named(tmp_path, model_path):
    with pytest.raises(ConfigError, match="no images in"):
        compress_files(model_path, [tmp_path], tmp_path / "out")


def test_a_model_that_cannot_compress_says_so(tmp_path, images, full_path):
    with pytest.raises(ConfigError, match=r"has no compression tokens; train or distil"):
        compress_files(full_path, [images], tmp_path / "out")
