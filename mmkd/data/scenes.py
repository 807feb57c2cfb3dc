"""Scenes: m x m EasyVQA images on one canvas, with questions that need counting, comparing and looking around.

Harder than EasyVQA itself, and as free of outside data: truth comes by construction from the list of things.
A scene is a function of (split, seed, index, grid) alone. Train scenes are drawn with EasyVQA train images, except
every tenth, which validation scenes are drawn with; test scenes with EasyVQA test images. The compositions that only
test questions name are scene_questions.HELD_OUT.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from mmkd import assets
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.scene_questions import COLORS, SHAPES, TYPES, Question, Thing, ask
from mmkd.errors import AssetError, ConfigError

Split = Literal["train", "validation", "test"]

CELL = 64  # side of an EasyVQA image in pixels
BACKGROUND = (230, 250)  # EasyVQA's own range of light backgrounds, per channel; empty cells get one too


@dataclass(frozen=True)
class Scene:
    """One scene; the picture is drawn on demand.

    Attributes:
        grid: cells in a row and in a column, m.
        size: side of the picture in pixels, at most 64 m.
        backgrounds: (row, column, RGB) of each empty cell.
    """

    id: str
    grid: int
    size: int
    things: tuple[Thing, ...]
    backgrounds: tuple[tuple[int, int, tuple[int, int, int]], ...]
    questions: tuple[Question, ...]

    def image(self) -> Image.Image:
        """The picture, RGB, size x size."""
        canvas = Image.new("RGB", (self.grid * CELL, self.grid * CELL))
        for row, column, color in self.backgrounds:
            canvas.paste(color, (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
        for thing in self.things:
            canvas.paste(_cell(thing.image), (thing.column * CELL, thing.row * CELL))
        if self.size == canvas.width:
            return canvas
        return canvas.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def scene(
    split: Split,
    index: int,
    seed: int,
    grid: int = 3,
    questions: int = 10,
    size: int | None = None,
    types: Sequence[str] | None = None,
) -> Scene:
    """The scene with this index; the same for the same arguments, on any machine.

    Args:
        types: of questions (scene_questions.TYPES); None for all.

    Raises:
        ConfigError: for an unknown split or type, or a grid, size or number of questions outside its limits.
    """
    size = _checked(split, grid, questions, size, types)
    rng = random.Random(f"{split}/{seed}/{grid}/{index}")
    # A few colours and sometimes only two shapes, so that counts vary and "none" is a fair answer.
    colors = rng.sample(COLORS, rng.randint(3, 5))
    shapes = rng.sample(SHAPES, rng.choice((2, 3, 3)))
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    filled = set(rng.sample(cells, rng.randint(grid * grid - grid, grid * grid)))

    pool = _pool(split)
    things, backgrounds = [], []
    for row, column in cells:
        if (row, column) in filled:
            color, shape = rng.choice(colors), rng.choice(shapes)
            things.append(Thing(row, column, color, shape, rng.choice(pool[color, shape])))
        else:
            red, green, blue = (rng.randint(*BACKGROUND) for _ in range(3))
            backgrounds.append((row, column, (red, green, blue)))
    asked = ask(things, questions, rng, held_out=split == "test", types=types)
    return Scene(f"scenes/{split}/{seed}/{grid}/{index}", grid, size, tuple(things), tuple(backgrounds), tuple(asked))


def scenes(
    split: Split,
    count: int,
    seed: int,
    grid: int = 3,
    questions: int = 10,
    size: int | None = None,
    types: Sequence[str] | None = None,
) -> Iterator[Scene]:
    """The first `count` scenes."""
    for index in range(count):
        yield scene(split, index, seed, grid, questions, size, types)


def records(
    split: Split,
    count: int,
    seed: int,
    grid: int = 3,
    questions: int = 10,
    size: int | None = None,
    described: bool = False,
    single: bool = False,
    types: Sequence[str] | None = None,
) -> list[Record]:
    """`count` scenes as records, the picture as PNG bytes; a scene that offers no question of the types makes none.

    Train and validation: one record per scene, its questions as turns, task "scene". Test: one record per question,
    task = its type, so that a score can be broken down by type; the records of one scene share one bytes object.

    Args:
        described: one record per scene, of two turns, instead: the colour, then the shape of every cell.
        single: one record per question in every split. types: of questions; None for all.
    """
    found = []
    for one in scenes(split, count, seed, grid, questions, size, types):
        png, origin = one.png(), Provenance(parent="easyvqa", engine="scenes", seed=seed, license="MIT")
        if described:
            found.append(Record(f"{one.id}/description", _described(one), [png], "description", "scenes", origin))
        elif single or split == "test":
            for number, question in enumerate(one.questions):
                turns = _turns((question,))
                found.append(Record(f"{one.id}/{number}", turns, [png], question.type, "scenes", origin))
        elif one.questions:
            found.append(Record(one.id, _turns(one.questions), [png], "scene", "scenes", origin))
    return found


def _described(scene: Scene) -> list[Turn]:
    """Every cell in reading order, once by colour and once by shape, so that no held-out pair is named."""
    at = {(thing.row, thing.column): thing for thing in scene.things}
    turns = []
    for what in ("color", "shape"):
        rows = (
            ", ".join(getattr(at.get((row, column)), what, "nothing") for column in range(scene.grid))
            for row in range(scene.grid)
        )
        turns += [Turn("user", f"What {what} is where?"), Turn("assistant", "; ".join(rows))]
    return turns


def _turns(questions: tuple[Question, ...]) -> list[Turn]:
    return [turn for q in questions for turn in (Turn("user", q.text), Turn("assistant", q.answer))]


def _checked(split: str, grid: int, questions: int, size: int | None, types: Sequence[str] | None) -> int:
    if split not in get_args(Split):
        raise ConfigError(f"scenes: split {split!r} is not one of {', '.join(get_args(Split))}.")
    if not 2 <= grid <= 8:
        raise ConfigError(f"scenes: grid is {grid}; 2 to 8 cells a side are possible.")
    if types is not None and (not types or not set(types) <= set(TYPES)):
        raise ConfigError(f"scenes: types are {list(types)}; some of {', '.join(TYPES)} are possible.")
    if questions < 1:
        raise ConfigError(f"scenes: questions is {questions}; a scene needs at least 1.")
    if size is not None and not 32 <= size <= CELL * grid:
        raise ConfigError(f"scenes: size is {size}; with grid {grid} it can be 32 to {CELL * grid} pixels.")
    return size or CELL * grid


@lru_cache(maxsize=8192)  # 12 KB each; EasyVQA has 5,000 images
def _cell(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@lru_cache  # also because assets.path checks every file
def _pool(split: Split) -> dict[tuple[str, str], list[str]]:
    """Image files of a split by (colour, shape), in the order of their numbers."""
    folder = assets.path("easyvqa")
    source = "test" if split == "test" else "train"
    pool: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, look in sorted(looks(folder, source).items()):
        if source == "test" or (number % 10 == 0) == (split == "validation"):
            pool[look].append(str(Path(folder, source, "images", f"{number}.png")))
    return dict(pool)


def looks(folder: str | Path, source: Literal["train", "test"]) -> dict[int, tuple[str, str]]:
    """(colour, shape) of every EasyVQA image whose own questions settle both: about nine in ten.

    Raises:
        AssetError: if the questions contradict each other.
    """
    questions = json.loads(Path(folder, source, "questions.json").read_text(encoding="utf-8"))
    is_so: dict[int, set[str]] = defaultdict(set)
    is_not: dict[int, set[str]] = defaultdict(set)
    for text, answer, number in questions:
        words = set(re.findall("[a-z]+", text))
        named = words.intersection(COLORS + SHAPES)
        if answer not in ("yes", "no"):
            is_so[number] |= named | {answer}  # "what is the blue shape?" also says that it is blue
        elif (answer == "yes") != bool(words & {"not", "no"}):
            is_so[number] |= named
        else:
            is_not[number] |= named

    found = {}
    for number in is_so.keys() | is_not.keys():
        color, shape = (_settled(is_so[number], is_not[number], choices) for choices in (COLORS, SHAPES))
        if len(color) > 1 or len(shape) > 1:
            raise AssetError(
                f"easyvqa: the questions on {source} image {number} contradict each other ({color}, {shape}). "
                "Remove the folder of this asset and fetch it again."
            )
        if color and shape:
            found[number] = (color[0], shape[0])
    return found


def _settled(is_so: set[str], is_not: set[str], choices: tuple[str, ...]) -> list[str]:
    left = [choice for choice in choices if choice not in is_not]
    return [choice for choice in choices if choice in is_so] or (left if len(left) == 1 else [])
