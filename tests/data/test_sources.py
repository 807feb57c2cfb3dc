"""Each kind of source, its options, and what it says about bad input."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mmkd.config.schema import SourceSection
from mmkd.data.grouping import grouped
from mmkd.data.hub import Stream
from mmkd.data.mixture import Mixture
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError, DataError


def opened(**options):
    return open_source(SourceSection(**options))


def said(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in record.turns]


# --- the registry -----------------------------------------------------------------------------------------------------


def test_an_unknown_source_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"source is 'jsonl2'; allowed: .*parquet.* Did you mean jsonl\?"):
        opened(source="jsonl2")


def test_an_unknown_option_is_refused_with_the_nearest_name_and_its_place():
    section = SourceSection(source="llava_json", path="x.json", image="pictures")
    with pytest.raises(
        ConfigError, match=r"data.mixture\[0\].image is not a field of llava_json. Did you mean images\?"
    ):
        open_source(section, at="data.mixture[0]")


def test_an_option_of_a_wrong_type_and_a_missing_one_are_refused():
    with pytest.raises(ConfigError, match="turns is 'many'; allowed: a whole number"):
        opened(source="easyvqa", turns="many")
    with pytest.raises(ConfigError, match="path is missing; jsonl needs it"):
        opened(source="jsonl")


# --- files ------------------------------------------------------------------------------------------------------------


def test_jsonl_gives_back_the_records_that_were_written(tmp_path, record, picture):
    one = record("one", ("q", "ä → b"), images=["pictures/a.png", "/elsewhere/b.png"])
    one.task, one.source = "color", "mine"
    one.provenance = Provenance(parent="p", engine="e", round=2, license="MIT")
    two = record("two", ("q1", "a1"), ("q2", "a2"), images=[])
    inline = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    three = {"id": 3, "turns": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}], "images": [inline]}
    path = tmp_path / "r.jsonl"
    lines = [json.dumps(one.to_dict(), ensure_ascii=False), "", json.dumps(two.to_dict()), json.dumps(three)]
    path.write_text("\n".join(lines), encoding="utf-8")
    records = opened(source="jsonl", path=str(path))
    assert len(records) == 3
    one.images = [str(tmp_path / "pictures/a.png"), "/elsewhere/b.png"]
    assert records[0] == one
    assert records[1] == two
    assert records[2] == Record("3", [Turn("user", "q"), Turn("assistant", "a")], [picture(1)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "turns": [', "line 2: not JSON"),
        ("[1, 2]", "line 2: a list, not an object"),
        ('{"turns": []}', r"line 2: not a record \(KeyError\('id'\)\)"),
        ('{"id": "a", "turns": [{"role": "user"}]}', "line 2: not a record"),
        ('{"id": "a", "turns": [], "pictures": []}', "line 2: unknown fields pictures; a record has id, images"),
        ('{"id": "a", "turns": [], "images": [7]}', "line 2: an image is a int; allowed: a path"),
        ('{"id": "a", "turns": [], "images": ["data:image/png;base64,@@"]}', "line 2: a data: URI that is no base64"),
        ('{"id": "a", "turns": [], "images": ["data:image/png;base64,é"]}', "line 2: a data: URI that is no base64"),
        ('{"id": "a", "turns": [], "images": "a.png"}', "line 2: images is a str; allowed: a list of paths"),
        ('{"id": "a", "turns": [], "provenance": {"maker": 1}}', "line 2: not a record"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_bad_line_is_named_when_it_is_read_and_does_not_spoil_the_others(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    good = '{"id": "good", "turns": []}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    records = opened(source="jsonl", path=str(path))
    assert (records[0].id, records[2].id) == ("good", "good")
    with pytest.raises(DataError, match=message):
        records[1]


def test_a_missing_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        opened(source="jsonl", path=str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no records"):
        opened(source="jsonl", path=str(tmp_path / "empty.jsonl"))


def test_llava_json_is_read_with_its_image_marks_and_image_folder(tmp_path):
    rows = [
        {
            "id": "a",
            "image": "coco/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A cat."},
                {"from": "human", "value": "Its colour?"},
                {"from": "gpt", "value": "Grey."},
            ],
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {
            "image": ["1.jpg", "2.jpg"],
            "conversations": [{"from": "human", "value": "<image><image>\nDiffer?"}, {"from": "gpt", "value": "No"}],
        },
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(rows))
    records = opened(source="llava_json", path=str(path), images="/pictures")
    assert said(records[0]) == [
        ("user", "What is it?"),
        ("assistant", "A cat."),
        ("user", "Its colour?"),
        ("assistant", "Grey."),
    ]
    assert (records[0].id, records[0].images, records[0].source) == ("a", ["/pictures/coco/1.jpg"], "llava")
    assert (records[1].id, records[1].images) == ("1", [])
    assert records[2].images == ["/pictures/1.jpg", "/pictures/2.jpg"]
    assert opened(source="llava_json", path=str(path))[0].images == [str(tmp_path / "coco/1.jpg")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "bot", "value": "x"}]}, r"row 0: not of LLaVA's shape \(KeyError\('bot'\)\)"),
        ({"image": "1.jpg"}, "not of LLaVA's shape"),
        ("text", "not of LLaVA's shape"),
        ({"image": "1.jpg", "conversations": [{"from": "human", "value": "x"}]}, "0 <image> marks, 1 images"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "1 <image> marks, 0 images"),
    ],
)
def test_a_llava_row_of_another_shape_is_named(tmp_path, row, message):
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=message):
        opened(source="llava_json", path=str(path))[0]


def test_answers_of_several_people_and_choices_are_read_from_every_kind_of_file(tmp_path, record, offline_cache):
    one = record("one", ("A dog?", "yes"), images=[])
    one.turns[0].choices, one.turns[1].answers = ["yes", "no"], ["yes", "yes", "no"]
    (tmp_path / "r.jsonl").write_text(json.dumps(one.to_dict()))
    offline_cache.Dataset.from_list([one.to_dict()]).to_parquet(tmp_path / "r.parquet")
    said = [
        {"from": "human", "value": "A dog?", "choices": ["yes", "no"]},
        {"from": "gpt", "value": "yes", "answers": ["yes", "yes", "no"]},
    ]
    (tmp_path / "r.json").write_text(json.dumps([{"id": "one", "conversations": said}]))
    columns = {"question": ["A dog?"], "answer": [[{"answer": text} for text in ("yes", "yes", "no")]]}
    offline_cache.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    for source, name in (("jsonl", "r.jsonl"), ("parquet", "r.parquet"), ("llava_json", "r.json")):
        assert opened(source=source, path=str(tmp_path / name))[0].turns == one.turns, source
    assert opened(source="datasets", path=str(tmp_path / "saved"))[0].turns[1] == one.turns[1]


@pytest.mark.parametrize("wrong", ["red", [1, 2], {"a": 1}])
def test_answers_that_are_no_list_of_texts_are_named(tmp_path, wrong):
    turns = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a", "answers": wrong}]
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "a", "turns": turns}))
    with pytest.raises(DataError, match=r"r.jsonl, line 1: answers of a turn is .*; allowed: a list of texts"):
        opened(source="jsonl", path=str(tmp_path / "r.jsonl"))[0]


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_a_blank_rationale_is_none_and_one_that_is_no_text_takes_its_own_row_alone(tmp_path, blank):
    turns = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a", "rationale": blank}]
    rows = [{"id": name, "images": ["one.png"], "turns": turns} for name in "abc"]
    rows[1] = rows[1] | {"turns": [turns[0], turns[1] | {"rationale": 5}]}
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first, bad, last = grouped(opened(source="jsonl", path=str(tmp_path / "r.jsonl")), 3).groups
    read = opened(source="jsonl", path=str(tmp_path / "r.jsonl"))
    assert [first, bad, last] == [[0], [1], [2]]
    assert read[0].turns[1].rationale is None
    with pytest.raises(BadRow, match=r"line 2: the rationale of a turn is '5'; allowed: a text"):
        read[1]


def test_llava_json_that_is_no_list_is_refused(tmp_path):
    path = tmp_path / "llava.json"
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="holds a dict; llava_json takes a list"):
        opened(source="llava_json", path=str(path))
    path.write_text("[1,")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        opened(source="llava_json", path=str(path))


# --- grouping ---------------------------------------------------------------------------------------------------------


def test_consecutive_questions_on_one_image_become_turns_in_a_seeded_order(record, records_file):
    records = [record(f"a{n}", (f"qa{n}", f"{n}"), images=["a.png"]) for n in range(5)]
    records += [record("b0", ("qb0", "0"), images=["b.png"])]
    records += [record(f"c{n}", (f"qc{n}", f"{n}"), images=["c.png", "d.png"]) for n in range(2)]
    records += [record(f"d{n}", (f"qd{n}", f"{n}"), images=[]) for n in range(2)]
    records += [record("a9", ("qa9", "9"), images=["a.png"])]  # the same image again, but not next to the others
    path = str(records_file(records))
    grouped = opened(source="jsonl", path=path, turns=3)
    sizes = [len(one.turns) // 2 for one in grouped]
    assert sizes == [3, 2, 1, 1, 1, 1, 1, 1]
    questions = [turn.text for one in grouped for turn in one.turns if turn.role == "user"]
    assert sorted(questions) == sorted(turn.text for one in records for turn in one.turns if turn.role == "user")
    for one in grouped:  # every question is still followed by its own answer
        assert all(q.text[-1] == a.text for q, a in zip(one.turns[::2], one.turns[1::2]))
    assert len({one.id for one in grouped}) == len(grouped)

    def order(seed: int) -> list[str]:
        return [one.turns[0].text for one in opened(source="jsonl", path=path, turns=3, seed=seed)]

    assert order(0) == [one.turns[0].text for one in grouped]
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_grouping_leaves_bad_rows_alone_and_keeps_system_turns_apart(tmp_path):
    def row(name: str, system: str | None) -> str:
        turns = [{"role": "system", "text": system}] if system else []
        turns += [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}]
        return json.dumps({"id": name, "turns": turns, "images": ["a.png"]})

    path = tmp_path / "r.jsonl"
    path.write_text("\n".join([row("1", "s"), row("2", "s"), "broken", row("3", "s"), row("4", "t")]))
    grouped = opened(source="jsonl", path=str(path), turns=10)
    assert len(grouped) == 4
    assert [turn.role for turn in grouped[0].turns] == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(DataError, match="line 3: not JSON"):
        grouped[1]
    assert (grouped[2].id, grouped[3].id) == ("3", "4")


def test_a_row_that_would_be_refused_does_not_take_the_others_of_its_image_with_it(record, records_file):
    records = [record(f"{n}", (f"q{n}", "" if n == 4 else "a"), images=["a.png"]) for n in range(10)]
    grouped = opened(source="jsonl", path=str(records_file(records)), turns=10)
    assert [len(one.turns) // 2 for one in grouped] == [4, 1, 5]
    assert said(grouped[1]) == [("user", "q4"), ("assistant", "")]


def test_less_than_one_turn_is_refused(records_file, record):
    with pytest.raises(ConfigError, match="turns is 0; a record holds at least 1"):
        opened(source="jsonl", path=str(records_file([record("a", ("q", "a"))])), turns=0)


# --- EasyVQA (in the shape of its package, without it) ----------------------------------------------------------------


@pytest.fixture
def small_easyvqa(tmp_path, monkeypatch, picture) -> Path:
    """A cache folder that holds an EasyVQA of two images."""
    from mmkd import assets

    asset = assets.ASSETS["easyvqa"]
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path))
    for split in ("train", "test"):
        folder = asset.path / split
        (folder / "images").mkdir(parents=True)
        rows = [["what color is it?", "red", 1], ["is it a circle?", "yes", 0], ["what shape?", "circle", 0]]
        rows += [["is it blue?", "no", 1], ["is it red?", "yes", 1]]
        (folder / "questions.json").write_text(json.dumps(rows))
        for image in (0, 1):
            (folder / "images" / f"{image}.png").write_bytes(picture(image))
    stamp = {"sha256": asset.sha256, **assets._sizes(asset.path)}
    (asset.folder / assets.STAMP).write_text(json.dumps(stamp))
    return asset.path


def test_easyvqa_is_one_record_an_image_or_a_question(small_easyvqa):
    whole = opened(source="easyvqa", split="train")
    assert [len(one.turns) // 2 for one in whole] == [2, 3]
    assert {one.task for one in whole} == {"mixed"}
    single = opened(source="easyvqa", split="test", turns=None)
    assert [(one.task, said(one)[1][1]) for one in single] == [
        ("yes/no", "yes"),
        ("shape", "circle"),
        ("color", "red"),
        ("yes/no", "no"),
        ("yes/no", "yes"),
    ]
    assert single[0].images == [str(small_easyvqa / "test" / "images" / "0.png")]
    assert Path(single[0].images[0]).is_file()
    with pytest.raises(ConfigError, match="easyvqa has the splits train and test, not 'dev'"):
        opened(source="easyvqa", split="dev")


# --- the datasets library ---------------------------------------------------------------------------------------------


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_parquet_gives_back_records_with_bytes_and_with_paths(tmp_path, offline_cache, record, picture):
    one = record("one", ("q", "a"), images=[picture(1), picture(2)])
    one.provenance = Provenance(engine="e", round=1)
    two = record("two", ("q", "a"), ("r", "b"), images=[])
    for name, records in (("bytes", [one, two]), ("paths", [record("p", ("q", "a"), images=["x/1.png"])])):
        path = tmp_path / f"{name}.parquet"
        offline_cache.Dataset.from_list([r.to_dict() for r in records]).to_parquet(path)
    found = opened(source="parquet", path=str(tmp_path / "bytes.parquet"))
    assert (len(found), found[0], found[1]) == (2, one, two)
    assert opened(source="parquet", path=str(tmp_path / "paths.parquet"))[0].images == [str(tmp_path / "x/1.png")]
    (tmp_path / "data[1].parquet").write_bytes((tmp_path / "paths.parquet").read_bytes())
    assert len(opened(source="parquet", path=str(tmp_path / "data[1].parquet"))) == 1
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read as Parquet"):
        opened(source="parquet", path=str(tmp_path / "bad.parquet"))


@pytest.fixture
def saved(tmp_path, offline_cache, picture) -> str:
    """Seven rows with an image column, saved with save_to_disk."""
    datasets = offline_cache
    rows = {
        "question": [f"q{n}" for n in range(7)],
        "answer": [f"a{n}" for n in range(7)],
        "image": [{"bytes": picture(n // 2), "path": None} for n in range(6)] + [None],
        "kind": [f"k{n}" for n in range(7)],
    }
    features = datasets.Features(
        {key: datasets.Image() if key == "image" else datasets.Value("string") for key in rows}
    )
    path = tmp_path / "saved"
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return str(path)


def test_a_saved_data_set_is_read_with_its_columns_and_images_stay_encoded(saved, picture):
    records = opened(source="datasets", path=saved, task="kind")
    assert len(records) == 7
    assert said(records[3]) == [("user", "q3"), ("assistant", "a3")]
    assert (records[3].images, records[3].task, records[3].source) == ([picture(1)], "k3", "saved")
    assert records[6].images == []
    assert [len(one.turns) // 2 for one in opened(source="datasets", path=saved, turns=5)] == [2, 2, 2, 1]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(saved):
    with pytest.raises(ConfigError, match="no column reply; it has question, answer, image, kind"):
        opened(source="datasets", path=saved, answer="reply")


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_never_left_out_in_silence(tmp_path, saved, offline_cache, streaming):
    datasets = offline_cache
    with pytest.raises(ConfigError, match="no column imgs; it has question, answer, image, kind"):
        opened(source="datasets", path=saved, image="imgs", streaming=streaming)
    rows = datasets.load_from_disk(saved).rename_column("image", "picture")
    rows.save_to_disk(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"has no column image; its images are in picture. Name"):
        opened(source="datasets", path=str(tmp_path / "one"), streaming=streaming)
    assert opened(source="datasets", path=str(tmp_path / "one"), image="picture", streaming=streaming)[0].images
    lists = rows.map(lambda row: {"picture": [row["picture"]]}, features=datasets.Features(
        {**rows.features, "picture": datasets.List(datasets.Image())}
    ))  # fmt: skip
    lists.save_to_disk(tmp_path / "lists")
    with pytest.raises(ConfigError, match="images are in picture"):
        opened(source="datasets", path=str(tmp_path / "lists"), streaming=streaming)
    rows.remove_columns("picture").save_to_disk(tmp_path / "none")
    assert opened(source="datasets", path=str(tmp_path / "none"), streaming=streaming)[0].images == []


def test_a_folder_of_files_is_read_by_datasets_itself_and_chat_messages_are_taken_apart(tmp_path, offline_cache):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    answer = [{"type": "text", "text": "a cat"}]
    row = {"chat": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text(json.dumps(row))
    records = opened(source="datasets", path=str(tmp_path / "files"), messages="chat")
    assert said(records[0]) == [("user", "what?"), ("assistant", "a cat")]


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path, offline_cache):
    with pytest.raises(DataError, match=r"datasets: .*nowhere \(split train\) cannot be loaded"):
        opened(source="datasets", path=str(tmp_path / "nowhere"))


def test_a_stream_repeats_itself_and_is_the_same_from_any_start(saved):
    whole = opened(source="datasets", path=saved, streaming=True)
    assert isinstance(whole, Stream)
    names = [whole[index].turns[0].text for index in range(20)]
    assert names == [f"q{index % 7}" for index in range(20)]
    resumed = opened(source="datasets", path=saved, streaming=True)
    assert [resumed[index].turns[0].text for index in (9, 10, 9, 3)] == ["q2", "q3", "q2", "q3"]
    far = 2 * Stream.KEPT
    assert [resumed[index].turns[0].text for index in (far, 3, far)] == [f"q{far % 7}", "q3", f"q{far % 7}"]


def test_a_shuffled_stream_has_another_order_each_epoch_that_the_seed_decides(saved):
    def order(seed: int, count: int = 14) -> list[str]:
        rows = opened(source="datasets", path=saved, streaming=True, shuffle_buffer=5, seed=seed)
        return [rows[index].turns[0].text for index in range(count)]

    first = order(0)
    assert first == order(0)
    assert first != order(1)
    assert first[:7] != first[7:]
    assert sorted(first[:7]) == sorted(first[7:]) == [f"q{n}" for n in range(7)]


def test_a_stream_stands_in_a_mixture_with_a_weight_and_not_without(saved, record):
    stream, others = opened(source="datasets", path=saved, streaming=True), [record("a", ("x", "y"))]
    with pytest.raises(ConfigError, match="0 of 2 sources have a weight"):
        Mixture([stream, others], [None, None], seed=0)
    mixture = Mixture([stream, others], [1.0, 1.0], seed=0)
    names = [mixture[index].turns[0].text for index in range(30)]
    streamed = [name for name in names if name != "x"]
    assert streamed == [f"q{n % 7}" for n in range(len(streamed))]
    assert 8 < len(streamed) < 22
    assert [Mixture([stream, others], [1.0, 1.0], 0)[i].turns[0].text for i in range(20, 30)] == names[20:]


def test_options_that_exclude_each_other_are_refused(saved):
    with pytest.raises(ConfigError, match="turns needs to look at all rows, which streaming cannot"):
        opened(source="datasets", path=saved, streaming=True, turns=2)
    with pytest.raises(ConfigError, match="shuffle_buffer is for streaming"):
        opened(source="datasets", path=saved, shuffle_buffer=10)
