"""Settings that every test needs before torch, transformers or deepspeed is imported."""

import os
from pathlib import Path

# No network, CPU for DeepSpeed, one thread for each rank. An explicit setting from outside wins.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # deepspeed compiles one function at import: seconds for nothing
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}.items():
    os.environ.setdefault(name, value)

from multiprocessing import get_context

import pytest

import mmkd

ROOT = Path(__file__).parent.parent

# Tests of several ranks, and of kills, fork them from one server; what it imports, no process imports again.
get_context("forkserver").set_forkserver_preload(
    [
        "mmkd.train.run",
        "mmkd.train.trainer",
        "mmkd.data.loader",
        "mmkd.teachers.live",
        "mmkd.synthesis.client",
        "mmkd.synthesis.programs.making.run",
        "mmkd.synthesis.competing.compete",
        "mmkd.synthesis.evolving.run",
        "timm",
        "deepspeed.runtime.engine",
        "deepspeed.runtime.zero.stage3",
    ]
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes (`make test`) one begins with the files that start several ranks, which fill two cores, and the
    other with the rest, a file's tests together. gpu tests are left out without a GPU."""
    ranks = {item.path for item in items if item.get_closest_marker("distributed")}
    items.sort(key=lambda item: item.path not in ranks)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ranks" if item.path in ranks else item.path.name))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture
def package() -> Path:
    """The folder of the imported mmkd."""
    return Path(mmkd.__file__).parent


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer of transformers: one token for each byte, then <s> and </s>."""
    from tests.byte_tokenizer import byte_tokenizer

    return byte_tokenizer()
