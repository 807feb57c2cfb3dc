"""What `mmkd eval` scores: a model as it is told, or the model of a run as the run's config says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmkd.config.load import load_run
from mmkd.config.schema import EvaluateSection
from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """Attributes: model to load; asked: of it, where no option says other; out: folder of the results, if any."""

    model: str
    asked: EvaluateSection
    out: Path | None


def job_of(model: str) -> Job:
    """The job that `model` stands for: a run folder brings its config's `evaluate` section, and results go below it.

    Raises: ConfigError for a run that has no model yet, or whose model is a classifier of images.
    """
    run = Path(model)
    if not (run / "config.yaml").is_file():
        return Job(model, EvaluateSection(), None)
    config = load_run(run / "config.yaml")
    if isinstance(config, VisionConfig):
        raise ConfigError(
            f"{run} is a run of kind: vision: its model classifies images and answers no questions. Its scores are in "
            f"{run / 'scores.json'}; a student sees with it as vision.source timm:local-dir:{run / 'model'}."
        )
    if not (run / "model" / "config.json").is_file():
        raise ConfigError(
            f"{run} is a run without a model yet; finish it with --resume, or name the folder of a model."
        )
    return Job(str(run / "model"), config.evaluate, run / "eval")
