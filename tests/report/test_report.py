"""The page of a run: whole, partial, broken, hostile."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from mmkd.errors import DataError
from mmkd.report.build import report
from tests.evaluate.conftest import tiny_model
from tests.report.conftest import PAYLOAD, read_page, write_run


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs"), models)
    return run, read_page(report(run))


@pytest.fixture(scope="module")
def hostile(models, tmp_path_factory):
    return read_page(report(write_run(tmp_path_factory.mktemp("hostile"), models, PAYLOAD)))


@pytest.fixture
def run(whole, tmp_path):
    """A copy to break, without the page."""
    shutil.copytree(whole[0].parent, tmp_path / "runs")
    copy = tmp_path / "runs" / "student"
    (copy / "report.html").unlink()
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(whole[0].parent), str(copy.parent)))
    return copy


def test_a_whole_run_becomes_one_page_with_every_part(whole):
    run, page = whole
    assert page.headings == [
        "Scores on toy",
        "What an image costs",
        "Training",
        "Answers on toy",
        "What the compression tokens look at",
        "Parts of the student",
        "Parts of the teacher",
        "Environment",
        "Config",
    ]
    assert f"{run.parent.name}/student" in page.text
    for heading in ("Accuracy by tokens an image is read as", "Time for a question", "Loss", "Top-1 agreement"):
        assert heading in page.text
    assert "acc 50 % 75 % 100 % 25 % 100 %" in page.text  # k = 1, 4, full, blind, teacher
    assert "k = 1, 4, full" in page.text  # answers that agree stand together
    assert "timm:test_efficientnet" in page.text
    assert "keep_layers: 3" in page.text


def test_the_page_refers_to_nothing_outside_itself(whole):
    _, page = whole
    targets = [value for _, tag in page.tags for name, value in tag.items() if name in ("src", "href", "xlink:href")]
    assert targets
    assert all(value.startswith(("data:image/webp;base64,", "#")) for value in targets)
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in page.tags)
    style = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_and_never_becomes_part_of_the_page(whole, hostile):
    _, page = whole
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page.tags}
    assert not [name for _, tag in hostile.tags for name in tag if name.startswith("on")]
    assert all(tag["src"].startswith("data:") for _, tag in hostile.tags if "src" in tag)
    shown = " ".join(PAYLOAD.split())
    assert f"0: {shown}" in hostile.text  # a question
    assert hostile.text.count(shown) > 20  # answers, truths, environment, stage, config
    assert hostile.html.count("{{ 7*7 }}") > 20  # not a template either
    assert "<script" not in hostile.html


@pytest.mark.parametrize(
    ("missing", "gone", "note"),
    [
        ("eval", ["Scores on toy", "Answers on toy"], "scores: none yet. Bring them with: mmkd eval"),
        ("metrics.jsonl", ["Training"], "training curves: metrics.jsonl is not there"),
        ("environment.json", ["Environment"], "environment: environment.json is not there"),
        ("config.yaml", ["Config", "Parts of the teacher", "Parts of the student"], "config: config.yaml is not there"),
        ("../teacher", ["Parts of the teacher"], "teacher: its folder"),
        (
            "model",
            ["Parts of the student", "What an image costs", "What the compression tokens look at"],
            "parts of the student: model/ is not there yet",
        ),
    ],
)
def test_what_is_missing_is_named_and_the_rest_is_shown(whole, run, missing, gone, note):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = read_page(report(run))
    left = [heading for heading in whole[1].headings if heading not in gone]
    if missing == "config.yaml":
        left.insert(left.index("Environment"), "Parts of the model")  # without a config nobody knows of a teacher
    assert page.headings == [*left, "Not in this report"]
    assert note in page.text


def test_a_run_that_has_only_started_has_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "tune", "step": 10, "loss": 3.25}\n{"stage": "tune", "st')
    page = read_page(report(tmp_path))
    assert page.headings == ["Training", "Not in this report"]
    assert "3.25 loss at step 10" in page.text


def test_a_model_without_compression_tokens_has_costs_and_no_maps(run, models):
    shutil.rmtree(run / "model")
    shutil.copytree(models / "teacher", run / "model")
    page = read_page(report(run))
    assert "What an image costs" in page.headings
    assert "What the compression tokens look at" not in page.headings
    assert "attention maps: the model has no compression tokens." in page.text


def test_a_cached_image_is_as_big_as_in_the_dtype_of_the_models_file(whole, run):
    model, _ = tiny_model(4)
    model.to(torch.bfloat16).save_pretrained(run / "model")
    page = read_page(report(run))
    assert page.headings == whole[1].headings
    assert "K,V of a cached image 0.2 KiB" in whole[1].text
    assert "K,V of a cached image 0.1 KiB" in page.text


def test_costs_of_a_tiled_student_say_how_many_tiles_they_are_of(whole, run):
    settings = json.loads((run / "model" / "processor_config.json").read_text())
    (run / "model" / "processor_config.json").write_text(json.dumps(settings | {"tiles": 4}))
    page = read_page(report(run))
    assert "cut into the most tiles, 4 and a thumbnail" in page.text
    assert "thumbnail" not in whole[1].text


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "eval/toy-1.json", "model/config.json"])
def test_a_broken_file_becomes_a_note(run, name):
    (run / name).write_text("{[broken")
    page = read_page(report(run))
    assert "cannot be read" in page.text
    assert "Training" in page.headings


def test_broken_weights_become_a_note_and_the_parts_are_still_there(run):
    (run / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    page = read_page(report(run))
    assert "attention maps and costs: cannot be read" in page.text
    assert "Parts of the student" in page.headings


def test_samples_that_are_torn_or_odd_do_not_stop_the_page(run):
    for path in (run / "eval").glob("*.samples.jsonl"):
        text = path.read_text()
        path.write_text(
            '{"doc": 3}\n[1]\n{"task": "toy", "doc_id": 99, "filtered_resps": []}\n' + text[: len(text) - 40]
        )
    assert "Answers on toy" in read_page(report(run)).headings


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="is not a run folder"):
            report(path)


def test_a_teacher_that_moved_together_with_the_run_is_found_beside_it(run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(run.parent), "elsewhere/runs"))
    assert "Parts of the teacher" in read_page(report(run)).headings


def test_a_second_report_replaces_the_first(run):
    report(run)
    scores = run / "eval" / "toy-1.json"
    scores.write_text(json.dumps({"scores": {"acc": 0.125}}))
    assert "12.5 %" in read_page(report(run)).text
