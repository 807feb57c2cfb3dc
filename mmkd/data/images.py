"""Opening an image that may be anything."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from mmkd.errors import DataError

MOST_PIXELS = 64_000_000


def open_image(source: str | bytes) -> Image.Image:
    """The image at a path, or in encoded bytes, as RGB and upright.

    The size is read before anything is decoded, so that an image bomb costs nothing.

    Raises: DataError for a missing, broken, truncated or too large image.
    """
    name = source if isinstance(source, str) else f"{len(source)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source if isinstance(source, str) else io.BytesIO(source))
        if image.width * image.height > MOST_PIXELS:
            raise DataError(
                f"image {name} is {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read. Resize it."
            )
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        elif image.mode.startswith("I;16") or image.mode == "I":
            image = image.point(lambda value: value / 256).convert("L")
        return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"image {name} does not exist.") from None
    except Image.DecompressionBombError:
        raise DataError(f"image {name} is larger than {MOST_PIXELS:,} pixels. Resize it.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image {name} cannot be decoded ({error}).") from error
