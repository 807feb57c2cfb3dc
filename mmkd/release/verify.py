"""Asks the model in memory and the release in a process without mmkd the same questions, and compares."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmkd.errors import ReleaseError
from mmkd.release import clean_process

# Largest difference of what a model computes, as a share of the largest value. The same kernels run on both sides, so
# that it is 0 in practice; the allowance is for kernels that differ with the layout in memory.
COMPUTED = ("logits/", "cache/")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass
class Expected:
    """What the model in memory said: see `clean_process.ask`."""

    readings: list[int | None] | None
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def readings_of(most: int) -> list[int | None]:
    """Full vision, the fewest and the most tokens that a model reads an image with."""
    return [None, *sorted({1, most})] if most else [None]


def expect(model: Any, processor: Any) -> Expected:
    """Ask the model in memory."""
    readings = readings_of(model.config.voco_tokens)
    return Expected(readings, *clean_process.ask(model, processor, readings))


def verify(folder: Path, expected: Expected, remote_code: bool) -> dict[str, Any]:
    """Load the release in `folder` in a clean process, ask it, and compare with `expected`.

    Returns: what was seen: largest difference of logits by reading, answers, classes, versions.

    Raises: ReleaseError where it does not load, or says something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tensors, facts = _run(folder, Path(scratch), expected.readings if remote_code else None, remote_code)
    return {"logits": compare(expected, tensors, facts), "command": "python -I clean_process.py", **facts}


def compare(expected: Expected, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Largest difference of logits, and the one allowed, by reading. Raises ReleaseError where anything differs."""
    differing = [
        name
        for name, tensor in expected.tensors.items()
        if name not in tensors or not (name.startswith(COMPUTED) or torch.equal(tensor, tensors[name]))
    ]
    if differing:
        raise ReleaseError(
            f"the release's processor makes other inputs than the model's own: {', '.join(differing[:4])}. "
            "The release was not kept."
        )
    differences = _differences(expected.tensors, tensors)
    for name, found in differences.items():
        if not found["difference"] <= found["allowed"]:
            raise ReleaseError(
                f"the release's logits differ from the model's by {found['difference']:.3g} where images are read "
                f"with {name} tokens ({found['allowed']:.3g} is allowed). The release was not kept."
            )
    # Where two logits are nearly equal, a difference that is allowed may change a word; equal logits may not.
    exact = all(found["difference"] == 0 for found in differences.values())
    for name in ("identity", *(["answers"] if exact else [])):
        if facts.get(name) != expected.facts.get(name):
            raise ReleaseError(
                f"the release's {name}: {facts.get(name)}, the model's: {expected.facts.get(name)}. "
                "The release was not kept."
            )
    return differences


def _run(
    folder: Path, scratch: Path, readings: list[int | None] | None, remote_code: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    command = [sys.executable, "-I", clean_process.__file__, str(folder.resolve()), str(scratch)]
    command += ["--readings", json.dumps(readings), *(["--remote-code"] if remote_code else [])]
    # Remote code is copied into a cache that dies with the process; nothing may come from the network; the same
    # number of threads, since sums are split by it.
    environment = os.environ | {
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=scratch, check=False)
    if done.returncode:
        raise ReleaseError(
            f"the release does not work in a process without mmkd (exit code {done.returncode}); it was not kept.\n"
            + "\n".join(done.stderr.strip().splitlines()[-12:])
        )
    return load_file(scratch / "observed.safetensors"), json.loads((scratch / "observed.json").read_text())


def _differences(expected: dict[str, Tensor], observed: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """By reading, the difference that comes nearest to what is allowed there, or passes it; nan passes everything."""
    found: dict[str, dict[str, float]] = {}
    worst: dict[str, float] = {}
    for name, tensor in expected.items():
        if not name.startswith(COMPUTED):
            continue
        other, reading = observed[name].float(), name.split("/")[1]
        same_shape = other.shape == tensor.shape
        difference = (tensor.float() - other).abs().max().item() if same_shape else math.inf
        allowed = TOLERANCE[tensor.dtype] * max(tensor.float().abs().max().item(), 1e-6)
        share = difference / allowed
        share = math.inf if math.isnan(share) else share
        if share >= worst.get(reading, 0.0):
            worst[reading], found[reading] = share, {"difference": difference, "allowed": allowed}
    return found
