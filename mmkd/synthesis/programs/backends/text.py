"""Reading text in images with rapidocr, whose models are inside its package."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmkd.errors import ConfigError


class TextReader:
    """Raises: ConfigError where rapidocr is not installed."""

    def __init__(self) -> None:
        try:
            import onnxruntime  # noqa: F401  rapidocr finds out only when it reads
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ConfigError(f'ocr: {error.name} is not installed. pip install "mmkd[ocr]"') from error
        self._engine = RapidOCR(params={"Global.log_level": "error"})

    def __call__(self, image: Image.Image) -> list[str]:
        """The lines of text in an RGB image, from top to bottom, then from left to right."""
        found = self._engine(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # it reads BGR
        if found.txts is None or found.boxes is None:
            return []
        # boxes: [N, 4 corners, (x, y)]
        lines = sorted(zip(found.boxes, found.txts), key=lambda one: (one[0][:, 1].min(), one[0][:, 0].min()))
        return [str(text) for _, text in lines]
