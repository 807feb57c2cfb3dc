"""What a linear probe reads from frozen towers: the colour and shape in each cell of a scene, or that it is empty.

    python -m bench.tower_probe runs/families    # with the towers of `bench.families ... --methods scratch --seeds 0`

Scenes of the training split, some to fit a logistic regression and others to score it. A cell's features are the four
places of the pooled grid that lie in it: of the whole scene, or of the cell as an image of its own, as tiles are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from bench.rows import Row, append, config_hash, surroundings
from mmkd.config.load import load_config
from mmkd.config.schema import VisionSection
from mmkd.contracts import Spec, adapter
from mmkd.data.scenes import CELL, scenes

BENCH = "tower_probe"
SIDE = 2  # cells in a row of a scene, and places in a row of a cell
CELLS = [(row, column) for row in range(SIDE) for column in range(SIDE)]
FITTED, SCORED = (900, 11), (250, 12)  # scenes, and the seed of their stream
BATCH = 50


@dataclass(frozen=True)
class Tower:
    vision: VisionSection
    tiles: bool = False  # each cell is an image


def towers(families: Path) -> dict[str, Tower]:
    """The teacher's of bench.halves, and those of its student: at the size of their own pair, and of a cell."""
    lite0 = load_config("scenes/teacher", []).student.vision

    def trained(pair: str, size: int, tiles: bool = False) -> Tower:
        source, grid = f"timm:local-dir:{families / f'{pair}-scratch-0' / 'model'}", (SIDE, SIDE) if tiles else (4, 4)
        return Tower(VisionSection(source=source, image_size=size, taps=[2, 4, 6], grid=grid), tiles)

    return {
        "EfficientNet-Lite0": Tower(lite0),
        "ViT of 160 pixels, whole": trained("easyvqa_lite0_vit", SIDE * CELL),
        "ViT of 64 pixels, whole": trained("easyvqa_lite0_vit_64", SIDE * CELL),
        "ViT of 64 pixels, tiles": trained("easyvqa_lite0_vit_64", CELL, tiles=True),
    }


def examples(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Scenes, and what is in each of their cells."""
    images, labels = [], []
    for scene in scenes("train", count, seed, SIDE):
        at = {(thing.row, thing.column): f"{thing.color} {thing.shape}" for thing in scene.things}
        images.append(scene.image())
        labels += [at.get(cell, "nothing") for cell in CELLS]
    return images, labels


@torch.no_grad()
def features(tower: Tower, images: Sequence[Image.Image], name: str) -> Tensor:
    """[cells of all images, 4 D]."""
    spec, vision = Spec.parse(tower.vision.source), tower.vision
    parts = adapter("vision", spec)().load(
        spec, image_size=vision.image_size, taps=vision.taps, grid=vision.grid, pretrained=True
    )
    module, found = parts.tower.eval(), []
    if tower.tiles:
        images = [
            image.crop((c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL)) for image in images for r, c in CELLS
        ]
    for start in tqdm(range(0, len(images), BATCH), desc=name, disable=None):
        pixels = parts.image_processor(images[start : start + BATCH], return_tensors="pt")["pixel_values"]
        seen = module(pixels)  # [B, places, D]
        if not tower.tiles:
            seen = seen.view(len(pixels), SIDE, SIDE, SIDE, SIDE, -1).transpose(2, 3)  # rows and columns of cells first
        found.append(seen.reshape(-1, SIDE * SIDE * seen.shape[-1]))
    return torch.cat(found)


def probed(families: Path) -> None:
    """Fit and score a probe for each tower, and append its rows: share of cells, of their colours and their shapes."""
    (fitted, known), (scored, wanted) = examples(*FITTED), examples(*SCORED)
    around = surroundings()
    for name, tower in towers(families).items():
        seen, shown = features(tower, fitted, name).numpy(), features(tower, scored, name).numpy()
        for what, part in (("cell", slice(None)), ("color", slice(1)), ("shape", slice(-1, None))):
            learn, ask = ([" ".join(label.split()[part]) for label in labels] for labels in (known, wanted))
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=60)).fit(seen, learn)
            digest = config_hash(tower.vision.model_dump(mode="json"))
            value, command = 100 * probe.score(shown, ask), f"python -m bench.tower_probe {families}"
            append([Row(BENCH, f"{what}@{name}", value, "%", (0,), None, None, command, digest, **around)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.tower_probe", description=__doc__.splitlines()[0])
    parser.add_argument("families", type=Path, help="folder of bench.families' runs, with the towers")
    probed(parser.parse_args().families)
