"""What the tests run, and kill: a competition whose trainings are real runs in its own process, in a world of one."""

from __future__ import annotations

from pathlib import Path

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.load import load_as, load_config
from mmkd.synthesis.competing.compete import compete


def train_here(job: str, file: str, run: Path) -> None:
    from mmkd.train.run import train

    train(load_config(file), resume=(run / "config.yaml").exists())


def run(config: str) -> None:
    compete(load_as(config, [], CompeteConfig), train_here)
