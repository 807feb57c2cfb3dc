"""Selectors, alone and through `mmkd select`."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from PIL import Image

from mmkd.config.load import load_as
from mmkd.config.synthesis_schema import SelectConfig
from mmkd.data.record_files import jsonl
from mmkd.data.records import Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.selecting import select_records
from mmkd.synthesis.selection import Rows
from mmkd.synthesis.selection.balance import balance
from mmkd.synthesis.selection.duplicates import near_duplicates
from mmkd.synthesis.selection.images import AlikeImages
from mmkd.synthesis.selection.quantization import bins_of, quantization
from tests.synthesis.fault_proxy import FaultProxy


def scene(seed: int, size: int = 96, quality: int | None = None) -> bytes:
    """Smooth random pictures, as PNG or JPEG."""
    blobs = np.random.RandomState(seed).randint(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer, image = io.BytesIO(), Image.fromarray(blobs).resize((size, size), Image.Resampling.BICUBIC)
    image.save(buffer, "PNG") if quality is None else image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def row(name: str, question: str, answer: str, *images: bytes, task: str = "") -> Record:
    return Record(name, [Turn("user", question), Turn("assistant", answer)], list(images), task)


@pytest.fixture
def rows(tmp_path):
    def build(records: list[Record], seed: int = 0) -> Rows:
        return Rows(records, list(range(len(records))), seed, tmp_path)

    return build


def test_near_duplicates_are_the_same_words_about_the_same_picture(rows):
    question = "What is the color of the small shape at the left of the picture, next to the big one?"
    records = [
        row("0", question, "red", scene(0)),
        row("1", question, "red", scene(1)),  # another picture
        row("2", question + "  ", "Red", scene(0, size=64, quality=70)),  # the same, smaller, recompressed
        row("3", question.replace("small", "tiny"), "red", scene(0)),
        row("4", "How many shapes?", "2", scene(0)),
        row("5", "How many shapes?", "3", scene(0)),  # another number
        row("6", question, "red"),
        row("7", question, "red"),
        row("8", question, "red", scene(0), scene(1)),
    ]
    assert set(near_duplicates(rows(records))) == {2, 7}
    dropped = near_duplicates(rows(records), similarity=0.5)
    assert set(dropped) == {2, 3, 7}
    assert dropped[2].startswith("near row 0: 1.00 of the words")
    assert set(near_duplicates(rows(records), image_distance=0)) >= {7}


@pytest.mark.parametrize("distance", [0, 3, 10])
def test_alike_images_are_those_of_the_definition(distance):
    draw = random.Random(distance)
    hashes = [draw.getrandbits(64) for _ in range(30)]
    for _ in range(200):
        flipped = draw.choice(hashes)
        for bit in draw.sample(range(64), draw.randint(0, 12)):
            flipped ^= 1 << bit
        hashes.append(flipped)
    alike, leaders = AlikeImages(distance), []
    for number in hashes:
        near = [i for i, leader in enumerate(leaders) if (leader ^ number).bit_count() <= distance]
        if not near:
            leaders.append(number)
        assert alike.group(number) == (near[0] if near else len(leaders) - 1)


def test_balance_holds_the_big_tasks_down_and_draws_by_the_seed(rows):
    records = [row(str(i), "?", "x", task="a" if i < 50 else "b" if i < 60 else "c") for i in range(65)]
    dropped = balance(rows(records), ratio=2)
    kept = [records[i].task for i in range(65) if i not in dropped]
    assert {task: kept.count(task) for task in "abc"} == {"a": 10, "b": 10, "c": 5}
    assert dropped == balance(rows(records), ratio=2) != balance(rows(records, seed=1), ratio=2)
    assert len(balance(rows(records), most=3)) == 56
    for options in ({}, {"most": 1, "ratio": 1}, {"most": 0}, {"ratio": 0.5}):
        with pytest.raises(ConfigError, match="give one of them"):
            balance(rows(records), **options)


def naive_bins(features: np.ndarray, bins: int) -> list[list[int]]:
    left, parted = list(range(len(features))), []
    for size in [len(part) for part in np.array_split(np.arange(len(features)), bins)]:
        inside: list[int] = []
        for _ in range(size):
            distance = lambda x, p: ((features[x] - features[p]) ** 2).sum()  # noqa: E731
            score = {x: sum(distance(x, p) for p in inside) - sum(distance(x, p) for p in left) for x in left}
            best = max(left, key=lambda x: (round(score[x], 9), -x))
            left.remove(best)
            inside.append(best)
        parted.append(inside)
    return parted


def test_bins_are_those_of_the_definition():
    features = np.random.RandomState(0).randn(23, 5)
    assert [part.tolist() for part in bins_of(features, 4)] == naive_bins(features, 4)


def test_quantization_keeps_the_share_and_every_kind(rows):
    """Nine tenths of the rows are alike; a random tenth may well miss one of the rare kinds."""
    words = ["cat", "tower", "receipt", "violin", "glacier"]
    records = [row(str(i), "What shape is it?", "circle", scene(0)) for i in range(90)]
    records += [
        row(str(90 + i), f"Describe the {words[i // 2]} {i}", words[i // 2], scene(1 + i // 2)) for i in range(10)
    ]
    dropped = quantization(rows(records), keep=0.2, bins=5)
    kept = [i for i in range(100) if i not in dropped]
    assert len(kept) == 20
    assert any(i >= 90 for i in kept)
    assert dropped == quantization(rows(records), keep=0.2, bins=5)
    assert len(quantization(rows(records), keep=0.2, bins=5, chunk=50)) == 80
    with pytest.raises(ConfigError, match="0 < keep < 1"):
        quantization(rows(records), keep=1.0)


@pytest.mark.parametrize(
    ("count", "keep", "kept"), [(10, 0.5, 5), (15, 0.1, 2), (90, 0.05, 5), (30, 0.1, 3), (7, 0.01, 1)]
)
def test_quantization_of_small_sets_keeps_the_share_too(rows, count, keep, kept):
    records = [
        Record(id=f"r{i}", turns=[Turn("user", f"question {i}"), Turn("assistant", "yes")]) for i in range(count)
    ]
    assert count - len(quantization(rows(records), keep=keep)) == kept
    assert count - len(quantization(rows(records), keep=keep, chunk=11, bins=3)) == kept


@pytest.fixture
def file(tmp_path):
    records = [
        row(f"r{i}", f"What {i}?", "red" if i % 2 else "blue", scene(i % 7), task=f"t{i % 2}") for i in range(40)
    ]
    records[0].images = [b"no picture"]
    path = tmp_path / "in" / "records.jsonl"
    write_jsonl(path, records)
    return path


def config(tmp_path, file, *selectors: dict) -> SelectConfig:
    path = tmp_path / "select.yaml"
    data = [{"source": "jsonl", "path": str(file)}]
    path.write_text(json.dumps({"data": data, "select": list(selectors), "out": str(tmp_path / "out")}))
    return load_as(path, [], SelectConfig)


def test_select_drops_what_a_blind_model_answers_and_says_why(tmp_path, file, endpoint, capsys):
    """The blind model always says Blue."""
    with FaultProxy(None, content=lambda body: "Blue.") as proxy:
        model = {"endpoint": endpoint(proxy.url).model_dump()}
        chosen = config(tmp_path, file, {"name": "image_need", "model": model}, {"name": "balance", "most": 15})
        out = select_records(chosen)
        assert len(proxy.seen) == 39
        told = [line.split() for line in capsys.readouterr().err.replace("│", " ").splitlines()]
        assert ["prompt", "tokens", "390"] in told
        assert ["done", "39", "(100.0%)"] in told
        assert not any("image_url" in str(seen.body) for seen in proxy.seen)
        select_records(chosen)
        assert len(proxy.seen) == 39
    kept = jsonl(str(out))
    assert len(kept) == 15
    assert all(record.turns[1].text == "red" for record in kept)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in rejected]
    assert {kind: kinds.count(kind) for kind in kinds} == {"image unreadable": 1, "image_need": 19, "balance": 5}
    assert "1 of 1 questions are answered without the pictures" in str(rejected)
    card = (tmp_path / "out" / "card.md").read_text()
    assert "| 2. balance | 20 rows before, 15 after (most 15) |" in card
    assert "| image_need | 19 |" in card
    assert proxy.url not in card


def test_a_task_may_be_named_like_markup_of_the_terminal(tmp_path, capsys):
    write_jsonl(tmp_path / "in.jsonl", [row("r", "What?", "red", scene(0), task="[/INST]")])
    select_records(config(tmp_path, tmp_path / "in.jsonl", {"name": "balance", "most": 1}))
    assert "[/INST]" in capsys.readouterr().err


def test_a_wrong_selector_or_option_is_named_before_a_row_is_read(tmp_path):
    for selectors, words in [
        ({"name": "near_duplicate"}, "Did you mean near_duplicates"),
        ({"name": "balance", "mots": 3}, r"select\[0\].mots is not a field of balance. Did you mean most"),
        ({"name": "balance", "most": "many"}, r"select\[0\].most is 'many'"),
        ({"name": "image_need"}, r"select\[0\].model is missing"),
    ]:
        with pytest.raises(ConfigError, match=words):
            select_records(config(tmp_path, "no-such-file", selectors))
    with pytest.raises(ConfigError, match=r"image_need: model: .*exactly one of endpoint, language, vlm"):
        select_records(config(tmp_path, _one(tmp_path), {"name": "image_need", "model": {}}))


def test_too_many_rows_that_nobody_can_read_end_it_with_the_key_that_names_them(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [row(str(number), "How many?", "2") for number in range(40)])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(line + "\nno row" for line in lines))
    with pytest.raises(DataError, match=r"rows tried could not be used, .* take the source out of data\.$"):
        select_records(config(tmp_path, tmp_path / "rows.jsonl", {"name": "balance", "most": 3}))


def test_a_selector_of_another_package_is_known_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "mine-1.0.dist-info").mkdir(parents=True)
    (package / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "mine-1.0.dist-info" / "entry_points.txt").write_text("[mmkd.selectors]\nshort = mine_selects:short\n")
    (package / "mine_selects.py").write_text(
        "def short(rows, most: int = 20) -> dict[int, str]:\n"
        "    return {i: 'long' for i, record in rows if len(record.turns[1].text) > most}\n"
    )
    monkeypatch.syspath_prepend(str(package))
    write_jsonl(tmp_path / "two.jsonl", [row("a", "What?", "red"), row("b", "What?", "a red circle")])
    kept = jsonl(str(select_records(config(tmp_path, tmp_path / "two.jsonl", {"name": "short", "most": 4}))))
    assert [record.id for record in kept] == ["a"]
    with pytest.raises(ConfigError, match="Did you mean short"):
        select_records(config(tmp_path, "no-such-file", {"name": "shortt"}))


def _one(tmp_path):
    write_jsonl(tmp_path / "one.jsonl", [row("r", "What?", "red", scene(0))])
    return tmp_path / "one.jsonl"


def test_records_written_are_records_read(tmp_path):
    (tmp_path / "a.png").write_bytes(scene(3))
    records = [row("r", "What?\n", "é", scene(0)), Record("s", [Turn("user", "x")], [str(tmp_path / "a.png")], "t")]
    assert write_jsonl(tmp_path / "deep" / "er" / "out.jsonl", records) == 2
    read = jsonl(str(tmp_path / "deep" / "er" / "out.jsonl"))
    assert read[0] == records[0]
    from pathlib import Path

    assert Path(read[1].images[0]).read_bytes() == scene(3)
