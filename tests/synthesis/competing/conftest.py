"""Tiny students, a server that sees, and configs of competitions on scenes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd.config.schema import SourceSection
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.competing.prepare import items_of
from tests.train.conftest import save_tiny_model

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # `compete_here` has to be importable by its name in forked processes


@pytest.fixture(scope="session")
def oracle(tmp_path_factory) -> Iterator[str]:
    """The address of a server that answers questions about scenes, nine in ten rightly."""
    port = tmp_path_factory.mktemp("oracle") / "port"
    process = subprocess.Popen([sys.executable, str(HERE / "oracle.py"), str(port)])
    while not port.exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port.read_text()}/v1"
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_model(folder, seed=0, layers=2, voco=4)
    return folder


@pytest.fixture
def competition(tmp_path, oracle, tiny_student) -> Callable[..., Path]:
    """`competition(name, **changes)`: a config file of two rounds on 4 scenes of 2 x 2."""

    def write(name: str = "competition", **changes: Any) -> Path:
        training = {
            "student": {"init": "given by compete"},
            "data": {"mixture": [{"source": "jsonl", "path": "given by compete"}], "max_length": 1024},
            "stages": [{"name": "learn", "steps": 4, "learning_rate": 1e-3, "batch_size": 4, "read": ["full", 4]}],
            "training": {"precision": "fp32", "log_every": 2, "save_every": 2, "device": "cpu"},
        }
        (tmp_path / "training.yaml").write_text(yaml.safe_dump(training))
        section = {
            "out": str(tmp_path / name),
            "rounds": 2,
            "start": str(tiny_student),
            "training": {"config": str(tmp_path / "training.yaml")},
            "turns": 5,
            "teacher": {"endpoint": {"url": oracle, "model": "oracle", "license": "MIT"}},
            "student": {"tokens": 4},
            "sampling": {"max_tokens": 8},
            "reasks": 0,
            "pool": [{"source": "scenes", "split": "train", "count": 4, "grid": 2}],
            "held_out": [{"source": "scenes", "split": "validation", "count": 2, "grid": 2}],
            "augment": {"name": "grounded", "count": 10},
            "filters": {"similarity": 1.0},
        }
        preferring = {"name": "prefer", "steps": 2, "learning_rate": 1e-3, "batch_size": 2, "read": ["full", 4]}
        preferring |= {"objectives": [{"name": "dpo"}, {"name": "cross_entropy", "weight": 0.1}]}
        pairs = training | {"teacher": {"kind": "live"}, "stages": [preferring]}
        (tmp_path / "preferring.yaml").write_text(yaml.safe_dump(pairs))
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(section | changes))
        return file

    return write


@pytest.fixture
def start() -> Iterator[Callable[[Path], BaseProcess]]:
    """`start(config)`: the competition in a process of its own, forked from one that has imported everything."""
    import compete_here

    begun: list[BaseProcess] = []

    def run(config: Path) -> BaseProcess:
        begun.append(get_context("forkserver").Process(target=compete_here.run, args=(str(config),)))
        begun[-1].start()
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.join()


@pytest.fixture
def failed(tmp_path) -> tuple[dict[str, Item], list[Outcome]]:
    """Questions about a scene, to which the student has said what is wrong."""
    sources = [SourceSection.model_validate({"source": "scenes", "count": 2, "grid": 2})]
    log = RejectedLog(tmp_path / "log.jsonl")
    items, _ = items_of(sources, "pool", tmp_path / "images", log, True, True)
    outcomes = [Outcome(item.id, Kind.HARD, item.reference or "", "wrong", (10.0, 1.0)) for item in items]
    return {item.id: item for item in items}, outcomes
