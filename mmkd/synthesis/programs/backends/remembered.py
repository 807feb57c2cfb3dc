"""Results of looking at an image, kept: the programs of a question look for the same things in the same pictures."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from PIL import Image

T = TypeVar("T")


class Remembered(Generic[T]):
    """`look(image, name)`, which is called once for the same pixels and name while its result is kept.

    Safe for several threads; two that ask for the same thing at once may both look.

    Args:
        size: results kept, the last used ones.
    """

    def __init__(self, look: Callable[[Image.Image, str], T], size: int):
        self.look, self.size = look, size
        self._kept: OrderedDict[tuple[str, int, int, str, bytes], T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, image: Image.Image, name: str) -> T:
        key = (image.mode, image.width, image.height, name, hashlib.blake2b(image.tobytes()).digest())
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self.look(image, name)
        with self._lock:
            self._kept[key] = found
            self._kept.move_to_end(key)
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return found
