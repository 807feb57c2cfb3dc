"""What is known of records, by id."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from mmkd.data.rejected import RejectedLog
from mmkd.errors import DataError
from mmkd.synthesis.evolving.rules import Questions
from mmkd.synthesis.evolving.seeds import Annotations


def test_annotations_are_found_by_their_record(tmp_path):
    file = tmp_path / "known.jsonl"
    file.write_text(
        '{"id": "a", "caption": "é"}\n'
        '{"id": "b", "objects": [{"label": "dog", "box": [0, 0, 0.5, 1]}]}\n'
        '{"id": "a", "caption": "the last one counts"}\n',
        encoding="utf-8",
    )
    log = RejectedLog(tmp_path / "log.jsonl")
    known = Annotations(str(file), log)
    assert known.of("a").caption == "the last one counts"
    [dog] = known.of("b").objects or []
    assert (dog.label, dog.box) == ("dog", (0, 0, 0.5, 1))
    assert known.of("c").objects is None
    assert Annotations(None, log).of("a").caption == ""
    with pytest.raises(DataError, match="there is no file"):
        Annotations(str(tmp_path / "none"), log)


def test_a_line_that_is_no_annotation_is_set_aside_with_its_field_and_what_is_allowed(tmp_path):
    file, log = tmp_path / "known.jsonl", RejectedLog(tmp_path / "log.jsonl", "Mend it.")
    wide = '{"id": "b", "objects": [{"label": "dog", "box": [0, 0, 1.0001, 1]}]}\n'
    file.write_text('{"id": 7, "caption": "a number"}\n\n' + wide + '{"id": "c", "caption": "after"}\n  \n')
    known = Annotations(str(file), log)
    assert [known.of(name).caption for name in "7bc"] == ["a number", "", "after"]
    assert (log.seen, log.bad) == (3, 1)
    [line] = map(json.loads, log.path.read_text().splitlines())
    assert (line["source"], line["index"], line["kind"]) == ("annotations", 3, "no annotation")
    why = "known.jsonl:3: objects.0.box.2: Input should be less than or equal to 1; found 1.0001. A line is"
    assert why in line["reason"]
    file.write_text(wide)
    with pytest.raises(DataError, match=r"no line of .*known\.jsonl is an annotation; the reasons are in .*Mend it"):
        Annotations(str(file), RejectedLog(log.path, "Mend it."))
    file.write_text('{"id": "a"}\n' * 38 + "{}\n" * 12)
    with pytest.raises(
        DataError, match=r"12 of 50 rows tried .*known\.jsonl:50: id: Field required; found \{\}\. A line"
    ):
        Annotations(str(file), RejectedLog(log.path, "Mend it."))


def test_memory_holds_a_digest_of_a_question_and_its_place_of_an_annotation(tmp_path):
    """A word of 20,000 letters in each: what is held does not hang on it."""
    file = tmp_path / "known.jsonl"
    file.write_text("".join(f'{{"id": "r{n}", "caption": "{"x" * 20_000}"}}\n' for n in range(200)))
    tracemalloc.start()
    known, asked = Annotations(str(file), RejectedLog(tmp_path / "log.jsonl")), Questions()
    for number in range(200):
        asked.add("image", known.of(f"r{number}").caption + str(number))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000
