"""Opening images: what is mended, what is refused, and what the message says."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmkd.data.images import FORMATS, MOST_PIXELS, open_image
from mmkd.data.rejected import BadRow
from mmkd.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one compressed row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_picture_is_read_from_a_path_and_from_bytes_alike(tmp_path, kind):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, str(path)):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (7, 5))
        assert np.array_equal(np.asarray(image), pixels)


def test_a_bomb_is_refused_before_a_pixel_of_it_is_decoded():
    bomb = png_header(30_000, 30_000)  # 2.7 GB decoded
    tracemalloc.start()
    with pytest.raises(DataError, match=r"more than 64,000,000 pixels|30000 x 30000 pixels; at most 64,000,000"):
        open_image(bomb)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_picture_a_little_over_the_limit_is_refused_with_its_size():
    width = MOST_PIXELS // 8000 + 1
    with pytest.raises(DataError, match=f"{width} x 8000 pixels; at most 64,000,000 are read"):
        open_image(png_header(width, 8000))


def test_pixels_turned_by_exif_are_turned_back():
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to show
    image = open_image(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert image.size == (4, 6)
    assert np.array_equal(np.asarray(image), np.rot90(pixels, 3))


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    assert list(open_image(encoded(image)).getdata()) == [(255, 0, 0), (255, 255, 255)]


def test_a_palette_with_a_transparent_colour_becomes_colours_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 128, 0, 200, 0, 0])
    image.putdata([0, 1])
    assert list(open_image(encoded(image)).getdata()) == [(0, 128, 0), (200, 0, 0)]
    assert list(open_image(encoded(image, transparency=0)).getdata()) == [(255, 255, 255), (200, 0, 0)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values), kind))
    assert [pixel[0] for pixel in image.getdata()] == [0, 1, 128, 255]


def test_a_transparent_grey_of_sixteen_bit_is_white_and_the_others_are_scaled():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values), transparency=256))
    assert [pixel[0] for pixel in image.getdata()] == [0, 255, 128, 255]


def test_cmyk_and_grey_become_rgb():
    for mode in ("CMYK", "L"):
        assert open_image(encoded(Image.new(mode, (3, 2)), "JPEG")).mode == "RGB"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is broken .* Fetch it again"),
        (lambda whole: whole[:60], "is broken|is none of PNG"),
        (lambda whole: whole[:100] + bytes(50) + whole[150:], "is broken"),
        (lambda whole: b"<html>404 Not Found</html>", "is none of PNG.*it starts with b'<html>40'. Convert it"),
        (lambda whole: b"", "is empty. Fetch it again"),
        (lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is none of PNG"),
        (lambda whole: encoded(Image.new("F", (2, 2)), "TIFF"), "floating-point pixels.*Save it as 8 bit"),
        (lambda whole: encoded(Image.fromarray(np.full((2, 2), 10**6, np.int32)), "TIFF"), "8 and 16 bit are read"),
    ],
    ids=["half", "header only", "overwritten", "a web page", "nothing", "PostScript", "floats", "32 bit"],
)
def test_a_file_that_is_no_whole_picture_is_refused_by_name(tmp_path, picture, make, message):
    path = tmp_path / "picture.png"
    path.write_bytes(make(picture(0, (40, 40))))
    with pytest.raises(DataError, match=message) as error:
        open_image(str(path))
    assert str(path) in str(error.value)


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_a_broken_avif_is_refused_by_name_as_others_are(tmp_path):
    """libavif says so with a RuntimeError, which would end a training."""
    path = tmp_path / "broken.avif"
    whole = encoded(Image.fromarray(np.random.RandomState(0).randint(0, 256, (24, 40, 3), dtype=np.uint8)), "AVIF")
    start = whole.index(b"mdat") + 4
    path.write_bytes(whole[:start] + bytes(len(whole) - start))
    with pytest.raises(BadRow, match=r"broken\.avif is broken \(.*Fetch it again"):
        open_image(str(path))


def test_text_that_is_too_long_for_a_path_is_a_bad_row_with_a_short_message():
    """A row that holds a whole image as text, without the data: before it."""
    with pytest.raises(BadRow, match=r"image iVBORiVBOR.*\.\. \(50,000 characters\) cannot be read") as caught:
        open_image("iVBOR" * 10_000)
    assert len(str(caught.value)) < 500


def test_a_missing_file_a_folder_and_a_pipe_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone.png does not exist. Check the path"):
        open_image(str(tmp_path / "gone.png"))
    with pytest.raises(DataError, match="is no file"):
        open_image(str(tmp_path))
    pipe = Path(tmp_path, "pipe")
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is no file"):  # and does not wait for a writer
        open_image(str(pipe))


def test_a_truncated_image_is_refused_even_where_another_library_made_pillow_lenient(tmp_path, picture):
    from PIL import ImageFile

    path = tmp_path / "picture.png"
    whole = picture(0, (40, 40))
    path.write_bytes(whole[: len(whole) // 2])
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with pytest.raises(DataError, match="broken"):
            open_image(str(path))
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
