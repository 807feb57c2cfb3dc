"""A scene whose truth is known, and what the tools see of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmkd.data.scenes import Scene, scene
from mmkd.errors import AssetError
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.tools import Toolset, View


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    try:
        scene("train", 0, 0)
    except AssetError as error:
        pytest.skip(f"EasyVQA cannot be brought here: {error}")
    return scene


@pytest.fixture(scope="session")
def tools() -> Toolset:
    return Toolset(classical())


@pytest.fixture(scope="session")
def view_of() -> Callable[[Scene], View]:
    return lambda one: View(one.image(), classical())
