"""Records as files: where their images are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd.data.record_files import jsonl
from mmkd.data.records import Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.competing.items import Item, read_items, write_items
from mmkd.synthesis.competing.pairs import gathered


@pytest.fixture
def linked(tmp_path, monkeypatch) -> Path:
    """A project whose `runs` is a link to another disk; the working directory."""
    project = tmp_path / "projects" / "mine"
    (tmp_path / "disk").mkdir()
    (project / "data").mkdir(parents=True)
    (project / "runs").symlink_to(tmp_path / "disk")
    (project / "data" / "x.png").write_bytes(b"a picture")
    monkeypatch.chdir(project)
    return project


def test_images_are_found_from_a_folder_behind_a_link(linked):
    file = Path("runs/answers/records.jsonl")
    write_jsonl(file, [Record("a", [Turn("user", "q"), Turn("assistant", "a")], ["data/x.png"])])
    assert Path(jsonl(str(file))[0].images[0]).read_bytes() == b"a picture"


def test_an_image_that_is_a_link_keeps_its_name(linked):
    (linked / "data" / "link.png").symlink_to("x.png")
    file = Path("data/records.jsonl")
    write_jsonl(file, [Record("a", [Turn("user", "q"), Turn("assistant", "a")], ["data/link.png"])])
    assert json.loads(file.read_text())["images"] == ["link.png"]


def test_half_a_character_is_written_as_json_says_it_and_read_back(tmp_path):
    one = Record("a", [Turn("user", json.loads(r'"what is \ud83d?"')), Turn("assistant", "ä")])
    write_jsonl(tmp_path / "records.jsonl", [one])
    assert jsonl(str(tmp_path / "records.jsonl"))[0].turns == one.turns


def test_images_of_a_competition_are_found_from_a_folder_behind_a_link(linked):
    file = Path("runs/compete/given/pool.jsonl")
    write_items(file, [Item("a", "what?", ("data/x.png",))])
    [item] = read_items(file)
    assert Path(item.images[0]).read_bytes() == b"a picture"
    row = {"id": "a", "images": ["../../../../projects/mine/data/x.png"]}
    turns = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (linked / "runs" / "one" / "deep" / "er").mkdir(parents=True)
    folder = Path("runs/one/deep/er")
    (folder / "preferences.jsonl").write_text(json.dumps(row | turns) + "\n")
    [pair] = gathered([folder], Path("runs/two"))
    (linked / "runs" / "two").mkdir()
    assert (Path("runs/two") / pair["images"][0]).read_bytes() == b"a picture"
