"""Finding coloured shapes in pixels."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.measure import label, regionprops

from mmkd.data.scene_questions import COLORS
from mmkd.synthesis.programs.backends.base import Detection

# The colours that EasyVQA draws with, in the order of COLORS.
PALETTE = np.array(
    [(0, 0, 0), (0, 0, 255), (165, 42, 42), (128, 128, 128), (0, 255, 0), (255, 0, 0), (0, 128, 128), (255, 255, 0)]
)
BACKGROUND = 222  # every channel of a background is at least 230 there; resampling overshoots by a few
SMALLEST = 9  # pixels; EasyVQA's smallest shape has about 40
MOST_CELLS = 8


def shapes_in(image: Image.Image) -> list[Detection]:
    """Every coloured shape with its box, in reading order.

    Pixels darker than any background are shape. Where the picture is a grid of cells (each with a flat background of
    its own), shapes are parted at the cells' edges and know their cell. Colour: the nearest of EasyVQA's eight to
    most pixels of the shape.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)  # [H, W, 3]
    shape = pixels.min(axis=2) < BACKGROUND  # [H, W]
    found: list[Detection] = []
    rows, columns = grid_edges(pixels, binary_dilation(shape, iterations=2))
    for row, (top, bottom) in enumerate(pairwise(rows)):
        for column, (left, right) in enumerate(pairwise(columns)):
            cell = (row, column) if len(rows) > 2 else None
            place = np.s_[top:bottom, left:right]
            found += _in_cell(pixels[place], shape[place], (left, top), cell)
    return sorted(found, key=lambda one: one.cell or (one.box[1], one.box[0]))


def grid_edges(pixels: np.ndarray, shape: np.ndarray) -> tuple[list[int], list[int]]:
    """Where the cells of an m x m grid begin and end, down and across, for the smallest m that has flat cells.

    One cell (the whole picture) where there is no such grid.
    """
    height, width = shape.shape
    for cells in range(1, MOST_CELLS + 1):
        rows = [round(i * height / cells) for i in range(cells + 1)]
        columns = [round(i * width / cells) for i in range(cells + 1)]
        if min(height, width) // cells >= 8 and all(
            _flat(pixels[top:bottom, left:right], shape[top:bottom, left:right])
            for top, bottom in pairwise(rows)
            for left, right in pairwise(columns)
        ):
            return rows, columns
    return [0, height], [0, width]


def _flat(pixels: np.ndarray, shape: np.ndarray) -> bool:
    """Whether the background of a cell is one colour, but for its rim and the rims of shapes, which are blended."""
    inside = pixels[2:-2, 2:-2][~shape[2:-2, 2:-2]]  # [N, 3]
    if len(inside) < 4:
        return True
    off = np.abs(inside - np.median(inside, axis=0)).max(axis=1) > 2
    return bool(off.mean() < 0.1)


def _in_cell(
    pixels: np.ndarray, shape: np.ndarray, corner: tuple[int, int], cell: tuple[int, int] | None
) -> list[Detection]:
    """The things of one cell [h, w, 3]: one at most where there is a grid; the rest are crumbs of its neighbours."""
    numbered = label(shape, connectivity=2)
    regions = [region for region in regionprops(numbered) if region.area >= SMALLEST]
    if cell is not None and regions:
        regions = [max(regions, key=lambda region: region.area)]
    background = np.median(pixels[~shape], axis=0) if (~shape).any() else np.full(3, 255.0)
    return [_thing(pixels, numbered == region.label, background, corner, cell) for region in regions]


def _thing(
    pixels: np.ndarray,
    mask: np.ndarray,
    background: np.ndarray,
    corner: tuple[int, int],
    cell: tuple[int, int] | None,
) -> Detection:
    inside = pixels[mask]  # [N, 3]
    distance = np.abs(inside[:, None, :] - PALETTE[None]).sum(axis=2)  # [N, 8]
    color = int(np.bincount(distance.argmin(axis=1), weights=distance.min(axis=1) < 90, minlength=len(COLORS)).argmax())
    # How much of each pixel the shape covers: at its rim pixels are a blend of background and colour.
    span = background - PALETTE[color]
    cover = np.clip(((background - pixels) @ span) / (span @ span), 0, 1) * mask
    core = cover > 0.25
    y, x = np.nonzero(core if core.any() else mask)
    top, left, bottom, right = int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1
    box = (left + corner[0], top + corner[1], right + corner[0], bottom + corner[1])
    return Detection(f"{COLORS[color]} {_form(cover[top:bottom, left:right])}", box, 1.0, cell)


def _form(cover: np.ndarray) -> str:
    """The shape whose ideal drawing differs least from how much of each pixel is covered [h, w]."""
    return min(
        ((float(np.abs(ideal - cover).sum()), name) for name, ideal in _ideals(*cover.shape)),
    )[1]


@lru_cache(maxsize=4096)
def _ideals(height: int, width: int) -> tuple[tuple[str, np.ndarray], ...]:
    """Each shape drawn with soft rims into a box of this size, filling it and half a pixel and a pixel smaller."""
    fine = 4
    rows = (np.arange(height * fine)[:, None] + 0.5) / fine
    columns = (np.arange(width * fine)[None] + 0.5) / fine
    drawn = []
    for inset in (0.0, 0.25, 0.5):
        y = (rows - inset) / max(height - 2 * inset, 1)  # 0 to 1 down the shape
        x = (columns - inset) / max(width - 2 * inset, 1) * 2 - 1  # -1 to 1 across
        whole = (y >= 0) & (y <= 1) & (np.abs(x) <= 1)
        for name, inside in (
            ("rectangle", whole),
            ("circle", x**2 + (2 * y - 1) ** 2 <= 1),
            ("triangle", np.abs(x) <= y),
        ):
            drawn.append((name, (whole & inside).reshape(height, fine, width, fine).mean(axis=(1, 3))))
    return tuple(drawn)
