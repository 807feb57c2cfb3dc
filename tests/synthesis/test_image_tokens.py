"""Whether the prompt tokens that a server counts can be those of a prompt whose pictures were read."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.errors import ConfigError
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.requests import Request, Usage


def picture(side: int) -> bytes:
    made = BytesIO()
    Image.new("RGB", (side, side)).save(made, "PNG")
    return made.getvalue()


def request(text: str, *sides: int) -> Request:
    return Request("r", (Turn(role="user", text=text),), tuple(picture(side) for side in sides))


SERVER = EndpointSection(url="http://x/v1", model="m")


@pytest.fixture
def check(tmp_path):
    """After a probe: 12 tokens of text and 576 of one picture of 336 x 336."""
    made = ImageCheck(SERVER, tmp_path)
    made.decide(request("what is it, then?", 336), Usage(prompt_tokens=588), Usage(prompt_tokens=12))
    return made


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (request("what is it, then?", 336, 336), 24),
        (request("what is it, then?", 336, 336), 12 + 576 - 50),  # one of two
        (request("what is it? " * 200, 336), 150),
        (request("what is it, then?", 672), 200),
    ],
)
def test_a_reply_to_a_prompt_too_short_for_its_pictures_is_refused(check, asked, counted):
    why = check.unread(asked, Usage(prompt_tokens=counted))
    assert why is not None
    assert "are the least that the first one and its text let expect" in why


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (request("what is it, then?", 336, 336), 12 + 2 * 576),
        (request("what?", 336), 6 + 576),
        (request("what is it, then?", 84), 12 + 36),  # of a server whose tokens go by pixels
        (request("what is it? " * 200, 336), 600 + 576),
        (request("what is it, then?"), 12),
    ],
)
def test_pictures_that_were_read_pass_whatever_their_size_and_the_length_of_the_text(check, asked, counted):
    assert check.unread(asked, Usage(prompt_tokens=counted)) is None


def test_without_a_probe_a_prompt_has_a_token_for_each_picture_and_one_for_the_text(tmp_path):
    check = ImageCheck(SERVER, tmp_path)
    assert check.unread(request("", 8, 8), Usage(prompt_tokens=3)) is None
    assert "2 tokens for a prompt with 2 images" in (check.unread(request("", 8, 8), Usage(prompt_tokens=2)) or "")


def test_a_later_run_knows_what_the_probe_told_of_this_server_and_of_no_other(check, tmp_path):
    assert ImageCheck(SERVER, tmp_path).probe == check.probe
    assert not ImageCheck(SERVER.model_copy(update={"model": "other"}), tmp_path).passed


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"url": "http://x/v1", "model": "m"}'])
def test_what_cannot_be_read_of_a_probe_is_found_out_again(tmp_path, text):
    (tmp_path / "reads_images.json").write_text(text)
    assert not ImageCheck(SERVER, tmp_path).passed


@pytest.mark.parametrize("counted", [Usage(), Usage(500, 1, estimated=True)])
def test_a_server_that_counts_no_prompt_tokens_is_told_and_not_asked_for_ever(tmp_path, counted):
    with pytest.raises(ConfigError, match=r"does not say how many tokens prompt and answer have.*check_images: false"):
        ImageCheck(SERVER, tmp_path).decide(request("what is it, then?", 336), counted, counted)
