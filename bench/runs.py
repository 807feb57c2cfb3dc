"""What benches of trained models share: a run is trained once, and scored once in each way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmkd.checkpoints import is_complete
from mmkd.evaluate.suite import evaluate
from mmkd.launch import launch

SUITE = "easyvqa_scenes"
METRICS = ["acc", *(f"acc_{kind}" for kind in ("count", "existence", "comparison", "spatial", "two_hop"))]


def trained(job: str, config: str, run: Path, seed: int, overrides: Sequence[str], ranks: int = 2) -> Path:
    """`run`, trained now where it is not; a killed run goes on. Raises TrainingError.

    Args:
        job, config: as for `mmkd.launch.launch`.
    """
    if not is_complete(run / "model"):
        launch(job, config, run, [f"run.seed={seed}", *overrides], ranks)
    return run


def scored(run: Path, tokens: Sequence, blind: bool = False, limit: int | None = None) -> None:
    """Brings RUN/eval/easyvqa_scenes-K.json for every K in `tokens`."""
    missing = [k for k in tokens if not (run / "eval" / f"{SUITE}-{k}.json").exists()]
    if missing:
        evaluate(str(run / "model"), SUITE, missing, blind, limit, out=run / "eval")
