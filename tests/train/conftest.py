"""Tiny random models, a small mixed data set, and configs of runs on them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlamaConfig

from mmkd.models import MmkdConfig, MmkdForConditionalGeneration, MmkdProcessor
from mmkd.models.configuration_vision import MmkdVisionConfig
from mmkd.templates import chat_template
from tests.byte_tokenizer import byte_level, byte_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # `ranks` has to be importable by its name in forked ranks

SIDE = 32
WORDS = ["red", "green", "blue", "a circle", "a square", "yes", "no"]


def save_tiny_model(
    folder: Path,
    seed: int,
    layers: int,
    voco: int | None,
    tied: bool = True,
    width: int = 32,
    tokenizer: Any = None,
    template: str = "qa",
    image_size: int = SIDE,
) -> None:
    """A composed model of random weights: a convolutional tower with batch norms, a decoder of hidden size `width`."""
    tokenizer = tokenizer or byte_tokenizer(image=True)
    side = {"height": image_size, "width": image_size}
    processor = MmkdProcessor(
        CLIPImageProcessor(size=side, do_center_crop=False, crop_size=side),
        tokenizer,
        chat_template=chat_template(template, tokenizer),
        image_tokens=4,
        voco_tokens=voco,
    )
    config = MmkdConfig(
        vision_config=MmkdVisionConfig(
            library="timm", architecture="test_efficientnet", grid=[2, 2], image_size=image_size
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        ),
        voco={"tokens": voco, "preset": "keep_sink", "embeddings": "separate", "mass_bias": False} if voco else None,
        image_token_id=processor.image_token_id,
        sink_token_id=tokenizer.bos_token_id,
        image_tokens=4,
        processor_hash=processor.fingerprint,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = MmkdForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    save_tiny_model(folder, seed=0, layers=2, voco=4)
    return folder


@pytest.fixture(scope="session")
def untied_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose head is not its embedding."""
    folder = tmp_path_factory.mktemp("untied_student")
    save_tiny_model(folder, seed=6, layers=2, voco=4, tied=False)
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    save_tiny_model(folder, seed=1, layers=3, voco=None)
    return folder


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose decoder is wider than the student's."""
    folder = tmp_path_factory.mktemp("wide_teacher")
    save_tiny_model(folder, seed=2, layers=3, voco=None, width=48)
    return folder


@pytest.fixture(scope="session")
def foreign_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another tokenizer, another chat template and another image size."""
    tokenizer = byte_level([f"what is {word}? {word}" for word in WORDS])
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|im_start|>", "<|im_end|>"]})
    folder = tmp_path_factory.mktemp("foreign_teacher")
    save_tiny_model(folder, 1, 3, None, width=48, tokenizer=tokenizer, template="chatml", image_size=2 * SIDE)
    return folder


@pytest.fixture(scope="session")
def square_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose decoder's layers are all 64 wide."""
    folder = tmp_path_factory.mktemp("square_teacher")
    save_tiny_model(folder, seed=4, layers=3, voco=None, width=64)
    return folder


@pytest.fixture(scope="session")
def square_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose decoder's layers are all 64 wide."""
    folder = tmp_path_factory.mktemp("square_student")
    save_tiny_model(folder, seed=5, layers=2, voco=4, width=64)
    return folder


def write_records(folder: Path, kinds: list[int]) -> Path:
    """A JSONL file; `kinds` says how many images each record has."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    lines = []
    for number, images in enumerate(kinds):
        names = []
        for place in range(images):
            names.append(f"{number}-{place}.png")
            Image.fromarray(random.randint(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / names[-1])
        turns = []
        for _ in range(1 + number % 3):
            turns.append({"role": "user", "text": f"what is {random.choice(WORDS)}?"})
            turns.append({"role": "assistant", "text": str(random.choice(WORDS))})
        lines.append(json.dumps({"id": f"r{number}", "turns": turns, "images": names}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the records without an image, so that some micro batches of a rank have none; some with two."""
    return write_records(tmp_path_factory.mktemp("records"), [0, 1, 0, 2, 0, 0, 1, 1, 0, 1] * 3)


@pytest.fixture
def many_records(tmp_path: Path) -> Path:
    """72 records, for tests that spoil some."""
    return write_records(tmp_path / "many", [1] * 72)


@pytest.fixture(scope="session")
def make_config(student: Path, teacher: Path, records: Path) -> Callable[..., dict[str, Any]]:
    """`make_config(run_dir, stage={...}, training={...}, zero=2, **sections)`: a VoCo student under a live teacher."""

    def build(run: Path, stage: Any = None, training: Any = None, zero: int = 2, **sections: Any) -> dict[str, Any]:
        base = {
            "run": {"dir": str(run), "seed": 3},
            "student": {"init": str(student)},
            "teacher": {"kind": "live", "model": str(teacher)},
            "objectives": [{"name": "cross_entropy"}, {"name": "forward_kl", "chunk": 16}],
            "data": {"mixture": [{"source": "jsonl", "path": str(records)}], "max_length": 256},
            "stages": [
                {
                    "name": "distill",
                    "steps": 20,
                    "learning_rate": 1e-3,
                    "warmup": 0.1,
                    "batch_size": 8,
                    "micro_batch_size": 2,
                    "read": ["full", 4, 1],
                    "gradient_clipping": 1.0,
                }
                | (stage or {})
            ],
            "training": {"precision": "fp32", "log_every": 1, "save_every": 50, "device": "cpu"} | (training or {}),
            # No parameter is small enough to stay whole under ZeRO-3: every use of one gathers it.
            "deepspeed": {
                "stage": zero,
                "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if zero == 3 else {},
            },
        }
        return base | sections

    return build


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`config(name, ...)`: as `make_config`, in a folder of this test."""

    def build(name: str = "run", **options: Any) -> dict[str, Any]:
        return make_config(tmp_path / name, **options)

    return build


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., dict[str, Any]]
) -> Callable[[int], dict[str, Any]]:
    """`finished(zero)`: the settings of a run of 20 steps on two ranks that is done, checkpoints of every 5 kept."""
    import ranks

    done: dict[int, dict[str, Any]] = {}

    def run(zero: int) -> dict[str, Any]:
        if zero not in done:
            folder = tmp_path_factory.mktemp("finished") / "run"
            settings = make_config(folder, zero=zero, training={"save_every": 5, "keep_checkpoints": 9})
            ranks.run(settings)
            done[zero] = settings
        return done[zero]

    return run


@pytest.fixture
def stopped(tmp_path: Path, finished: Callable[[int], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`stopped(zero, after)`: a copy of the finished run as a kill would have left it, two steps and a half line of
    log after the checkpoint of step `after`."""

    def cut(zero: int, after: int) -> dict[str, Any]:
        settings = finished(zero)
        copy = tmp_path / f"stopped-{zero}-{after}"
        shutil.copytree(settings["run"]["dir"], copy)
        shutil.rmtree(copy / "model")
        for folder in (copy / "checkpoints" / "distill").iterdir():
            if int(folder.name.split("-")[1]) > after:
                shutil.rmtree(folder)
        lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_text("".join(lines[: after + 2]) + '{"stage": "disti')
        return settings | {"run": settings["run"] | {"dir": str(copy)}}

    return cut
