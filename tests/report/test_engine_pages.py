"""The pages of programs, compete and evolve: what they show, of whole, unfinished, broken and hostile folders."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd.data.scenes import scene
from mmkd.errors import AssetError
from mmkd.report import album, browse, compete_page
from mmkd.report.build import report
from mmkd.report.pictures import data_uri
from tests.report.conftest import PAYLOAD, Page, read_page
from tests.report.engines import change, compete_folder, evolve_folder, evolve_run, lines, programs_run

LONE = "\ud800"  # JSON can hold it, UTF-8 cannot


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[str, Path]:
    """Folders of real small runs."""
    try:
        scene("train", 0, 0)
    except AssetError as error:
        pytest.skip(f"EasyVQA cannot be brought here: {error}")
    root = tmp_path_factory.mktemp("engines")
    return {"programs": programs_run(root / "programs"), "evolve": evolve_run(root / "evolve")}


def scripts(page: Page) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", page.html, re.DOTALL)


def rows_of(page: Page) -> list[dict[str, Any]]:
    return json.loads(scripts(page)[0])["rows"]


def test_programs_are_shown_with_yield_verdict_trace_and_rationale(real, tmp_path):
    out = shutil.copytree(real["programs"], tmp_path / "programs")
    page = read_page(report(out))
    assert page.headings[0] == "Yield by type of question"
    assert "Why programs are not verified" in page.headings
    yields = json.loads((out / "yield.json").read_text())
    assert f"{yields['all']['verified']} rationales" in page.text
    programs, rows = lines(out / "programs.jsonl"), rows_of(page)
    assert [row["facets"] for row in rows] == [[[one["task"], one["verdict"], one["reason"] or ""]] for one in programs]
    verified = [row for row in rows if row["facets"][0][1] == "verified"]
    told = {dict(row["lines"])["rationale"] for row in verified if "rationale" in dict(row["lines"])}
    assert told == {t["rationale"] for one in lines(out / "records.jsonl") for t in one["turns"] if t["rationale"]}
    row, one = next((row, one) for row, one in zip(rows, programs) if one["trace"] and one["trace"][0]["found"])
    assert row["nodes"][0]["head"] == f"1 {one['trace'][0]['tool']}"
    left, top, right, bottom = one["trace"][0]["found"][0]["box"]
    side = scene("train", 0, 0).image().width
    box = row["boxes"][0]
    drawn = [box["left"], box["top"], box["width"], box["height"]]
    assert drawn == pytest.approx([100 * n / side for n in (left, top, right - left, bottom - top)], abs=0.01)
    assert box["label"].startswith("1")
    assert row["more"] == [["program", one["program"]]]


def test_what_a_judge_said_is_counted_and_stands_at_its_answer(real, tmp_path):
    out = shutil.copytree(real["programs"], tmp_path / "programs")
    assert "Answers compared by a judge" not in read_page(report(out)).headings
    judged = iter([True, False])
    change(out / "programs.jsonl", lambda row: row.update(judged=next(judged, None)))
    yields = json.loads((out / "yield.json").read_text())
    yields["all"]["judged"] = {"same": 1, "different": 17}
    (out / "yield.json").write_text(json.dumps(yields))
    page = read_page(report(out))
    assert "Answers compared by a judge" in page.headings
    assert "different 17 same 1" in page.text
    said = [dict(row["lines"]).get("judge") for row in rows_of(page)]
    assert said[:3] == ["the same as the truth", "not the truth", None]


def test_rounds_of_programs_have_curves_and_a_filter(real, tmp_path):
    for number in (0, 1):
        shutil.copytree(real["programs"], tmp_path / f"round-{number}")
    page = read_page(report(tmp_path))
    assert page.headings[:3] == ["Rounds", "Yield by type of question, round-0", "Yield by type of question, round-1"]
    rows = rows_of(page)
    assert rows[0]["facets"][0][3] == "round-1"  # the newest first
    assert {row["facets"][0][3] for row in rows} == {"round-0", "round-1"}


def test_an_item_that_evolved_is_shown_with_its_family_tree(real, tmp_path):
    out = shutil.copytree(real["evolve"], tmp_path / "evolve")
    page = read_page(report(out))
    assert page.headings[0] == "Rounds"
    rounds = [lines(out / "rounds" / f"{number}.jsonl") for number in range(3)]
    rows = rows_of(page)
    assert [row["title"] for row in rows] == [one["current"]["content"]["question"] for one in rounds[2]]
    for place, row in enumerate(rows):
        versions = [one[place] for one in rounds]
        assert row["picture"] is not None
        assert len(row["nodes"]) == 3
        kept = [one["kept"] for one in versions]
        assert [node["style"] for node in row["nodes"][1:]] == ["right" if one else "wrong" for one in kept[1:]]
        # each version stands one step to the right of its parent, which is the newest good one before it
        assert [node["depth"] for node in row["nodes"]] == [0, 1, 2 if kept[1] else 1]
        assert all(one["kept"] or one["kind"] in row["nodes"][n]["head"] for n, one in enumerate(versions))
    kinds = {one["kind"] for found in rounds[1:] for one in found if not one["kept"]}
    assert all(kind in page.text for kind in kinds)


def test_a_version_that_was_not_kept_stands_in_the_tree_with_its_reason(tmp_path):
    page = read_page(report(evolve_folder(tmp_path / "out", "too easy", items=4)))
    assert "Why versions were not kept" in page.headings
    assert "too easy 2" in page.text
    grown, _, left, _ = rows_of(page)
    assert [(node["head"], node["style"], node["depth"]) for node in grown["nodes"]] == [
        ("seed", "", 0),
        ("round 1, cognitive, difficulty 3 → 4, kept", "right", 1),
    ]
    assert left["nodes"][1]["head"] == "round 1, cognitive, not kept: too easy"
    assert left["nodes"][1]["text"].endswith("\ntoo easy")
    assert left["facets"][1] == ["1", "cognitive", "not kept", "too easy", "art type"]
    assert left["boxes"] == [
        {"left": 10.0, "top": 20.0, "width": 40.0, "height": 40.0, "label": "1 too easy", "style": "found"}
    ]


def test_a_competition_has_curves_and_what_either_side_is_better_at(tmp_path):
    page = read_page(report(compete_folder(tmp_path / "out")))
    assert page.headings == [
        "Rounds",
        "Why drafts of new questions did not stay",
        "Drafts in other words, and why others kept their own",
        "Why mended answers made no preference pair",
        "Difficult items",
        "Wins of the student",
        "Judged answers",
    ]
    for title in (
        "Scores on the held-out split",
        "Held-out win rate of the student",
        "Share of difficult items in the pool",
        "Share of new drafts that stayed",
    ):
        assert title in page.text
    assert "teacher, 9" in page.text
    assert "student, 8" in page.text
    assert page.html.count('class="card asked"') == 2
    rows = rows_of(page)
    assert [row["facets"][0][:3] for row in rows[:2]] == [["hard", "2", "pool"], ["win", "2", "pool"]]
    assert len(rows) == 5 + 5 + 5 + 4 + 3
    assert all(row["picture"] == 0 for row in rows)
    assert ["order", "the two orders of the answers prefer different sides"] in rows[1]["lines"]
    family = [(node["head"], node["style"], node["depth"]) for node in rows[1]["nodes"]]
    assert family == [
        ("item 0 what is this?, hard in round 2", "wrong", 0),
        ("item 1 what is this?, win in round 2", "right", 1),
    ]
    assert rows[0]["nodes"] == []


def hostile_programs(out: Path) -> Path:
    def spoil(row: dict[str, Any]) -> None:
        same = PAYLOAD + LONE
        row |= {"task": same, "question": same, "program": same, "message": same, "answer": {same: same}}
        for event in row["trace"]:
            event |= {"tool": same, "arguments": {same: same}, "result": same}
            for part in event["found"]:
                part["label"] = same

    change(out / "programs.jsonl", spoil)
    change(
        out / "records.jsonl",
        lambda row: [
            row["provenance"].update(program=PAYLOAD + LONE),
            *(turn.update(text=PAYLOAD, rationale=PAYLOAD) for turn in row["turns"]),
        ],
    )
    change(out / "rejected.jsonl", lambda row: row.update(kind=PAYLOAD + LONE))
    yields = json.loads((out / "yield.json").read_text())
    yields[PAYLOAD + LONE] = yields["all"] | {"reasons": {PAYLOAD + LONE: 1}}
    yields["all"]["reasons"][PAYLOAD] = 3
    yields["all"]["judged"] = {PAYLOAD + LONE: 2}
    (out / "yield.json").write_text(json.dumps(yields))
    return out


@pytest.mark.parametrize("engine", ["programs", "compete", "evolve"])
def test_hostile_text_stays_text(engine, real, tmp_path):
    make = {
        "programs": lambda: hostile_programs(shutil.copytree(real["programs"], tmp_path / "out")),
        "compete": lambda: compete_folder(tmp_path / "out", PAYLOAD),
        "evolve": lambda: evolve_folder(tmp_path / "out", PAYLOAD),
    }
    page = read_page(report(make[engine]()))
    assert [name for name, _ in page.tags].count("script") == 2
    assert page.html.count("</script") == 2
    data, code = scripts(page)
    assert "<" not in data
    assert code == Path(browse.__file__).with_name("browse.js").read_text()
    assert not [name for _, tag in page.tags for name in tag if name.startswith("on")]
    assert {tag["src"][:10] for _, tag in page.tags if "src" in tag} <= {"data:image"}
    assert not {"link", "iframe", "object", "embed", "base", "a"} & {name for name, _ in page.tags}
    policy = next(tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    rows = rows_of(page)
    assert any(PAYLOAD in row["title"] for row in rows)  # unharmed as data
    assert any(PAYLOAD in node["text"] for row in rows for node in row["nodes"]) or engine == "compete"
    assert any(PAYLOAD in text for row in rows for _, text in row["lines"])
    before_data = page.text.partition('{"filters"')[0]
    assert " ".join(PAYLOAD[:70].split()) in before_data  # and as text: a type, a reason
    assert "{{ 7*7 }}" in page.html


def test_a_page_holds_some_rows_and_pictures_and_says_how_many_it_left_out(monkeypatch, real, tmp_path):
    monkeypatch.setattr(browse, "MOST_ROWS", 3)
    monkeypatch.setattr(album, "MOST_BYTES", 1)  # full with the first picture
    out = shutil.copytree(real["programs"], tmp_path / "programs")
    page = read_page(report(out))
    total = len(lines(out / "programs.jsonl"))
    assert len(rows_of(page)) == 3
    assert f"Programs: {total - 3} of {total} are left out." in page.text
    shutil.copytree(real["evolve"], tmp_path / "evolve")
    page = read_page(report(tmp_path / "evolve"))
    assert len(json.loads(scripts(page)[0])["pictures"]) == 1
    assert "pictures: those of the last 2 records are left out" in page.text


@pytest.mark.slow
def test_each_of_ten_thousand_items_is_shown_with_its_own_of_two_thousand_pictures(tmp_path):
    page = read_page(report(evolve_folder(tmp_path / "out", PAYLOAD, 10_000, pictures=2000)))
    data = json.loads(scripts(page)[0])
    assert [row["picture"] for row in data["rows"]] == [number % 2000 for number in range(10_000)]
    assert len(set(data["pictures"])) == 2000
    for number in (0, 1999):
        shown = Image.open(io.BytesIO(base64.b64decode(data["pictures"][number].partition(",")[2])))
        own = Image.open(tmp_path / "out" / "images" / f"{number}.png")
        assert np.abs(np.asarray(shown.convert("RGB"), float) - np.asarray(own, float)).mean() < 12
    assert "left out" not in page.text


def test_a_page_has_room_for_two_thousand_photographs():
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    frequency[0, 0] = 1
    noise = np.fft.fft2(np.random.RandomState(0).randn(3, 512, 512)) / frequency**1.5  # a spectrum as photographs have
    waves = np.fft.ifft2(noise).real.transpose(1, 2, 0)
    photograph = Image.fromarray((255 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8))
    assert 2000 * len(data_uri(photograph)) < album.MOST_BYTES


def test_a_page_of_a_competition_holds_no_more_verdicts_than_it_shows(monkeypatch, tmp_path):
    out, held = compete_folder(tmp_path / "out"), []
    whole = read_page(report(out))

    def counted(*args: Any) -> Any:
        held.append(sum(isinstance(one, compete_page.Judged) for one in gc.get_objects()))
        return browse.browser(*args)

    monkeypatch.setattr(browse, "MOST_ROWS", 2)
    monkeypatch.setattr(compete_page, "browser", counted)
    page = read_page(report(out))
    assert rows_of(page) == rows_of(whole)[:2]
    assert page.headings == [*whole.headings, "Not in this report"]
    assert "Judged answers: 20 of 22 are left out." in page.text
    assert held[0] <= 2 + 2 + 1  # those of two rows, two examples, and a parent


@pytest.mark.parametrize("engine", ["programs", "compete", "evolve"])
def test_lines_that_are_torn_or_odd_are_counted_and_the_rest_is_shown(engine, real, tmp_path):
    out, name = tmp_path / "out", {"programs": "programs.jsonl", "compete": "round-1/verdicts.jsonl"}.get(engine)
    compete_folder(out) if engine == "compete" else shutil.copytree(real[engine], out)
    file = out / (name or "rounds/1.jsonl")
    before = len(file.read_text().splitlines())
    odd = '{"id": 3}\n{"id": ["a"], "item": {}, "trace": 5}\n' + "[" * 5000 + '\n{"box": 1e999}\n'
    file.write_text(odd + file.read_text()[:-30])
    page = read_page(report(out))
    assert "lines cannot be read and are left out" in page.text
    rows = rows_of(page)
    if engine == "programs":
        assert len(rows) == before - 1
    assert rows


def test_a_verdict_of_one_score_or_none_is_counted(tmp_path):
    out = tmp_path / "out"
    compete_folder(out)
    file = out / "round-1/verdicts.jsonl"
    one, *others = lines(file)
    odd = [one | {"scores": scores} for scores in ([5.0], [])]
    file.write_text("".join(json.dumps(row) + "\n" for row in (*odd, *others)))
    page = read_page(report(out))
    assert "verdicts of round 1: 2 lines cannot be read and are left out" in page.text


@pytest.mark.parametrize(
    ("engine", "missing", "note"),
    [
        ("programs", "yield.json", "yield.json is not there"),
        ("programs", "records.jsonl", "pictures and rationales: "),
        ("compete", "rounds.jsonl", "rounds: rounds.jsonl is not there"),
        ("evolve", "records.jsonl", "pictures: records.jsonl is not there"),
    ],
)
def test_an_unfinished_folder_has_a_page_that_says_what_is_missing(engine, missing, note, real, tmp_path):
    out = tmp_path / "out"
    compete_folder(out) if engine == "compete" else shutil.copytree(real[engine], out)
    (out / missing).unlink()
    page = read_page(report(out))
    assert rows_of(page)
    assert note in page.text


def test_numbers_that_are_none_are_a_note_and_not_a_crash(tmp_path, real):
    out = shutil.copytree(real["programs"], tmp_path / "programs")
    yields = json.loads((out / "yield.json").read_text())
    for value in ("many", True, 10**400, float("nan"), None):
        yields["all"]["verified"] = value
        (out / "yield.json").write_text(json.dumps(yields))
        assert "yields of programs: cannot be read" in read_page(report(out)).text
    out = compete_folder(tmp_path / "compete")
    change(out / "rounds.jsonl", lambda row: row["held_out"].update(win_rate=float("nan")))
    page = read_page(report(out))
    assert "rounds: 3 lines cannot be read" in page.text
    assert "Rounds" not in page.headings
