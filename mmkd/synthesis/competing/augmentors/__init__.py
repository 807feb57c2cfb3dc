"""Who writes new questions. `register` is open to plug-ins; the packaged ones are imported here to be known by name."""

from mmkd.synthesis.competing.augmentors import grounded, llm  # noqa: F401
from mmkd.synthesis.competing.augmentors.registry import Draft, Parent, Wanted, register

__all__ = ["Draft", "Parent", "Wanted", "register"]
