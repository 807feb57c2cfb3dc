"""A sandbox that all tests share, scenes, and programs that answer every question type of scenes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from mmkd.data.scenes import Scene, scene
from mmkd.errors import AssetError
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.runner import Runner
from mmkd.synthesis.programs.tools import Toolset

REFERENCE = r"the ([a-z ]+?)\?"
SIDE = "(left of|right of|above|below)"


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    with Runner(limits=Limits(seconds=1.0), executor=MontyExecutor(workers=2)) as made:
        yield made


@pytest.fixture(scope="session")
def tools() -> Toolset:
    return Toolset(classical())


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    try:
        scene("train", 0, 0)
    except AssetError as error:
        pytest.skip(f"EasyVQA cannot be brought here: {error}")
    return scene


@pytest.fixture(scope="session")
def solve() -> Callable[[str], str]:
    return program_for


def program_for(question: str) -> str:
    """A right program for any question about a scene."""

    def returns(*lines: str) -> str:
        return "\n    ".join(["def answer(image):", *lines]) + "\n"

    if found := re.fullmatch(r"how many (.+)s are there\?", question):
        return returns(f"return count(image, {found[1]!r})")
    if found := re.fullmatch(rf"is there a (.+) {SIDE} {REFERENCE}", question):
        return returns(
            f"start = find(image, {found[3]!r})[0]",
            f"side = {_tool(found[2])}(start)",
            f"return side is not None and verify_property(side, {found[1]!r})",
        )
    if found := re.fullmatch(r"is there a (.+)\?", question):
        return returns(f"return exists(image, {found[1]!r})")
    if found := re.fullmatch(r"are there (more|fewer) (.+)s than (.+)s\?", question):
        return returns(f"return compare(count(image, {found[2]!r}), {found[1]!r}, count(image, {found[3]!r}))")
    if found := re.fullmatch(r"is the number of (.+)s equal to the number of (.+)s\?", question):
        return returns(f"return count(image, {found[1]!r}) == count(image, {found[2]!r})")
    found = re.fullmatch(
        rf"what (?:shape is|is the (color) of the shape) {SIDE}(?: the shape that is {SIDE})? {REFERENCE}", question
    )
    assert found, question
    color, last, first, reference = found.groups()
    steps = [f"at = find(image, {reference!r})[0]"]
    steps += [f"at = {_tool(side)}(at)" for side in (first, last) if side]
    return returns(*steps, f"return query(at, 'what {color or 'shape'} is it?')")


def _tool(side: str) -> str:
    return side.replace(" ", "_")
