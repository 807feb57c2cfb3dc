"""Pictures as the processor takes them: read as in training, and never resized to more than is looked at."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from mmkd.data.images import open_image
from mmkd.models import MmkdProcessor
from tests.byte_tokenizer import byte_tokenizer

SIDE = 32


def processor(**settings) -> MmkdProcessor:
    """Resizes the short side and crops, as CLIP does, unless `settings` say otherwise."""
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}} | settings
    return MmkdProcessor(CLIPImageProcessor(**settings), byte_tokenizer(image=True), chat_template="")


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- long images ------------------------------------------------------------------------------------------------------

CROPS = [(SIDE, SIDE), (SIDE + 5, SIDE), (SIDE, SIDE + 5)]


@pytest.mark.parametrize(("short", "crop"), CROPS)
@pytest.mark.parametrize("size", [(40, 40), (90, 41), (41, 600), (1, 15), (20, 3)])
def test_an_image_of_a_usual_shape_is_seen_as_the_image_processor_sees_it(size, short, crop):
    images = processor(size={"shortest_edge": short}, crop_size={"height": crop, "width": crop})
    image = Image.fromarray(noise(*size))
    expected = images.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(images.image_tensors([image])[0], expected)


@pytest.mark.parametrize(("short", "crop"), CROPS)
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (2, 1001), (3, 500), (7, 997), (2999, 50), (41, 1201)])
def test_the_middle_of_a_long_image_is_seen_where_the_whole_is_cut_down(size, short, crop):
    images = processor(size={"shortest_edge": short}, crop_size={"height": crop, "width": crop})
    image = Image.fromarray(noise(*size))
    expected = images.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    found = images.image_tensors([image])[0]
    # The length is rounded to whole pixels, so that a pixel of the crop may lie 1/40 beside where it was.
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    assert (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(1, 5000), (1, 64_000_000), (64_000_000, 1)])
def test_an_image_a_pixel_wide_is_not_resized_to_gigabytes(size, monkeypatch):
    given = []

    def instead(self, images, **options):
        given.extend(image.size for image in images)
        return {"pixel_values": torch.zeros(1)}

    monkeypatch.setattr(CLIPImageProcessor, "__call__", instead)
    processor().image_tensors([Image.new("RGB", size, "white")])
    assert max(given[0]) <= 20  # pixels, each of which becomes SIDE; at side 224 the whole would be 9.6 TB


# --- what is read -----------------------------------------------------------------------------------------------------


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def palette() -> Image.Image:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 128, 0, 200, 0, 0])
    image.putpixel((0, 0), 0)
    return image


SIXTEEN = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4) + np.uint16(255)
PICTURES = {
    "RGB": encoded(Image.fromarray(noise(6, 4))),
    "RGBA": encoded(Image.fromarray(noise(6, 4, 4))),
    "LA": encoded(Image.fromarray(noise(6, 4, 2))),
    "palette": encoded(palette()),
    "palette with a transparent colour": encoded(palette(), transparency=0),
    "RGB with a transparent colour": encoded(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9)),
    "GIF": encoded(palette(), "GIF", transparency=0),
    "16 bit": encoded(Image.fromarray(SIXTEEN)),
    "16 bit with a transparent grey": encoded(Image.fromarray(SIXTEEN), transparency=int(SIXTEEN[2, 1])),
    "16 bit TIFF": encoded(Image.fromarray(SIXTEEN), "TIFF"),
    "32 bit that hold 16": encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"),
    "grey": encoded(Image.fromarray(noise(6, 4)[..., 0])),
    "black and white": encoded(Image.fromarray(noise(6, 4)[..., 0]).convert("1")),
    "CMYK": encoded(Image.fromarray(noise(6, 4, 4), "CMYK"), "TIFF"),
    "turned": encoded(Image.fromarray(noise(6, 4)), exif=turned()),
    "turned JPEG": encoded(Image.fromarray(noise(60, 40)), "JPEG", exif=turned()),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_read_as_in_training_however_it_comes(kind, tmp_path):
    """The definition: what `mmkd.data.images` makes of it, which a release has not."""
    data = PICTURES[kind]
    (tmp_path / "picture").write_bytes(data)
    plain = processor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    expected = plain.image_processor(images=[open_image(data)], return_tensors="pt")["pixel_values"]
    text = base64.b64encode(data).decode()
    ways = {
        "read already": open_image(data),
        "Pillow's": Image.open(io.BytesIO(data)),
        "path": tmp_path / "picture",
        "path as text": str(tmp_path / "picture"),
        "base64": text,
        "data URI": f"data:image/png;base64,{text}",
    }
    for way, image in ways.items():
        assert torch.equal(plain(images=image)["pixel_values"], expected), way


def test_pixels_that_have_no_clear_rgb_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        processor()(images=Image.new("F", (2, 2)))
    with pytest.raises(ValueError, match="values 1000000 to 1000000"):
        processor()(images=Image.fromarray(np.full((2, 2), 10**6, np.int32)))


def test_text_that_names_no_image_is_refused_with_its_beginning(tmp_path):
    (tmp_path / "notes").write_text("no picture")
    for source in ("gone.png", "x" * 100_000, str(tmp_path / "notes")):
        with pytest.raises(ValueError, match="is no image file, no URL") as error:
            processor()(images=source)
        assert source[:50] in str(error.value)
        assert len(str(error.value)) < 500


def test_an_image_behind_a_url_is_read(tmp_path):
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    (tmp_path / "picture").write_bytes(PICTURES["RGBA"])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = processor()(images=f"http://127.0.0.1:{server.server_port}/picture")["pixel_values"]
        server.shutdown()
    assert torch.equal(found, processor().image_tensors([open_image(PICTURES["RGBA"])])[0])
