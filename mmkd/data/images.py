"""Opening an image that may be anything."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmkd.data.rejected import BadRow

MOST_PIXELS = 64_000_000
MOST_SHOWN = 300  # characters of a path in a message
# What photographs and drawings come in. The rest of what Pillow opens is rare and less tested; EPS would run a program.
# A Pillow without some codec lacks that format. (Phones' MPO files are opened as JPEG.)
Image.init()
FORMATS = tuple(
    name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN
)
UNREADABLE = "image unreadable"
# RuntimeError is libavif's word for a broken file.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error)


def open_image(source: str | bytes) -> Image.Image:
    """The image at a path, or in encoded bytes, as RGB and upright.

    Sizes are read before anything is decoded, so that an image bomb costs nothing. Transparency is laid on white,
    16-bit values are scaled to 8 bit, EXIF orientation is applied, of an animation the first frame is taken.

    Raises: DataError (a BadRow) for a missing, broken, truncated or too large image, or a mode that has no clear RGB.
    """
    data = read_image(source)
    name = _name(source)
    # Some libraries (lmms-eval) make Pillow pad truncated images with grey for the whole process; not here.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            # Pillow warns at a limit of its own; ours is below it and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise BadRow(
                f"image {name} is {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read. Resize it.",
                "image too large",
            )
        return to_rgb(image, name)
    except BadRow:
        raise
    except Image.DecompressionBombError:
        raise BadRow(f"image {name} has more than {MOST_PIXELS:,} pixels. Resize it.", "image too large") from None
    except UnidentifiedImageError as error:
        raise BadRow(
            f"image {name} is none of {', '.join(FORMATS)}: it starts with {data[:8]!r}. Convert it or remove the row.",
            UNREADABLE,
        ) from error
    except BROKEN as error:
        raise BadRow(f"image {name} is broken ({error}). Fetch it again, or remove the row.", UNREADABLE) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def read_image(source: str | bytes) -> bytes:
    """The encoded bytes. Raises DataError (a BadRow) where there is no such file, or it is empty."""
    if isinstance(source, bytes):
        data = source
    else:
        try:  # paths that no file can have, such as the text of a whole image, are errors from the first question on
            if not Path(source).is_file():  # a folder, or a pipe that would wait for ever
                found = "is no file" if Path(source).exists() else "does not exist"
                raise BadRow(
                    f"image {_name(source)} {found}. Check the path and the image folder of the source.",
                    "image missing",
                )
            data = Path(source).read_bytes()
        except OSError as error:
            raise BadRow(f"image {_name(source)} cannot be read ({error.strerror}).", UNREADABLE) from error
    if not data:
        raise BadRow(f"image {_name(source)} is empty. Fetch it again, or remove the row.", UNREADABLE)
    return data


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """See `open_image`. A release's processor does the same (`_rgb` of mmkd/models/processing_mmkd.py; tested).

    Raises: DataError (a BadRow) for a mode that has no clear RGB.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # integers of 16 bit, or of 32 bit that hold 16
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadRow(
                f"image {name} has values {values.min()} to {values.max()}; 8 and 16 bit are read. Save it as 8 bit.",
                UNREADABLE,
            )
        clear = values == image.info.get("transparency", -1)  # Pillow clips what it makes clear
        image = Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "F":
        raise BadRow(f"image {name} has floating-point pixels; 8 and 16 bit are read. Save it as 8 bit.", UNREADABLE)
    return image.convert("RGB")


def _name(source: str | bytes) -> str:
    if isinstance(source, bytes):
        return f"of {len(source):,} bytes inside its record"
    return source if len(source) <= MOST_SHOWN else f"{source[:MOST_SHOWN]}.. ({len(source):,} characters)"
