"""Which records stay. `register` is open to plug-ins; the packaged selectors are imported here to be known by name."""

from mmkd.synthesis.selection import balance, duplicates, image_need, quantization  # noqa: F401
from mmkd.synthesis.selection.registry import Rows, register

__all__ = ["Rows", "register"]
