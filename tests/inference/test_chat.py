"""`mmkd chat`: driven through its input, as a person or a pipe drives it."""

from __future__ import annotations

import io

import pytest

from mmkd.errors import DataError
from mmkd.inference.chat import HELP, Conversation, chat


@pytest.fixture
def talk(monkeypatch, capsys, model_path):
    """`talk(lines, images)`: what went to stdout and to stderr."""

    def run(lines: list[str], images=(), **options) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        capsys.readouterr()
        chat(model_path, list(images), answer_tokens=6, **options)
        seen = capsys.readouterr()
        return seen.out, seen.err

    return run


@pytest.fixture
def cat(tmp_path, picture):
    path = tmp_path / "cat.png"
    path.write_bytes(picture(0))
    return path


def test_questions_of_a_pipe_are_answered_a_line_each_and_the_image_is_compressed_once(talk, cat):
    out, notes = talk(["What?", "", "Where?", "/quit", "Never?"], [cat], tokens=2)
    first, _ = talk(["What?"], [cat], tokens=2)
    assert out.startswith(first)  # the end of the input ends it, too
    assert len(out) > len(first) > 1
    assert notes.count("cat.png: 4 vision tokens -> 2, ") == 1


def test_an_image_may_come_later_and_may_be_one_of_several(talk, tmp_path, cat, picture):
    (tmp_path / "a dog.png").write_bytes(picture(3))
    out, notes = talk(["What?", f"/image {tmp_path}/a dog.png", "And now?"], [cat])
    assert "a dog.png: 4 vision tokens -> 4, " in notes
    assert len(out.splitlines()) >= 2


def test_a_wrong_image_path_is_told_and_the_talk_goes_on(talk, tmp_path, cat):
    (tmp_path / "torn.png").write_bytes(cat.read_bytes()[:500])
    out, notes = talk([f"/image {tmp_path}/none.png", f"/image {tmp_path}/torn.png", "/image", "What?"], [cat])
    assert "none.png does not exist" in notes
    assert f"{tmp_path}/torn.png: image" in notes
    assert "broken" in notes
    assert HELP in notes
    assert out.strip()


def test_a_first_image_that_cannot_be_read_is_an_error(talk, tmp_path):
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        talk(["What?"], [tmp_path / "none.png"])


def test_clear_forgets_images_and_turns(talk, cat):
    cleared, _ = talk(["What?", "/clear", "What?"], [cat])
    first, _ = talk(["What?"], [cat])
    blind, _ = talk(["What?"])
    assert cleared == first + blind


def test_a_conversation_that_grows_too_long_says_so(talk):
    out, notes = talk(["x" * 100, "x" * 100])
    assert "the model reads 160. Start a new chat" in notes
    assert len(out.splitlines()) >= 1


def test_text_arrives_in_pieces_that_add_up_to_the_answer(reader, cat):
    conversation, pieces = Conversation(reader, answer_tokens=16), []
    conversation.add_image(cat)
    answer = conversation.ask("What?", pieces.append)
    assert "".join(pieces).strip() == answer
    assert conversation.turns[-1]["content"][0]["text"] == answer
    conversation.ask("Again?", pieces.append)
    conversation.ask("Yes?", pieces.append)
    assert (reader.counts.compressed, reader.counts.reused) == (1, 3)


def test_a_model_that_reads_in_full_is_talked_to_as_well(full_path, cat, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    chat(full_path, [cat], answer_tokens=4)
    seen = capsys.readouterr()
    assert "cat.png: 32 x 32 pixels" in seen.err
    assert seen.out.strip()
