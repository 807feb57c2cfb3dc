"""What is known of records, by id."""

from __future__ import annotations

import tracemalloc

import pytest

from mmkd.errors import DataError
from mmkd.synthesis.evolving.rules import Questions
from mmkd.synthesis.evolving.seeds import Annotations


def test_annotations_are_found_by_their_record_and_a_bad_line_is_named(tmp_path):
    file = tmp_path / "known.jsonl"
    file.write_text(
        '{"id": "a", "caption": "é"}\n'
        '{"id": "b", "objects": [{"label": "dog", "box": [0, 0, 0.5, 1]}]}\n'
        '{"id": "a", "caption": "the last one counts"}\n',
        encoding="utf-8",
    )
    known = Annotations(str(file))
    assert known.of("a").caption == "the last one counts"
    [dog] = known.of("b").objects or []
    assert (dog.label, dog.box) == ("dog", (0, 0, 0.5, 1))
    assert known.of("c").objects is None
    assert Annotations(None).of("a").caption == ""
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"id": "d", "objects": [{"label": "dog", "box": [0, 0, 2, 1]}]}\n')
    with pytest.raises(DataError, match=r"known\.jsonl:4 is no annotation"):
        Annotations(str(file))
    with pytest.raises(DataError, match="there is no file"):
        Annotations(str(tmp_path / "none"))


def test_memory_holds_a_digest_of_a_question_and_its_place_of_an_annotation(tmp_path):
    """A word of 20,000 letters in each: what is held does not hang on it."""
    file = tmp_path / "known.jsonl"
    file.write_text("".join(f'{{"id": "r{n}", "caption": "{"x" * 20_000}"}}\n' for n in range(200)))
    tracemalloc.start()
    known, asked = Annotations(str(file)), Questions()
    for number in range(200):
        asked.add("image", known.of(f"r{number}").caption + str(number))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000
