"""Kernels of Liger and cut cross-entropy equal the chunked pass, and are refused where they cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmkd.config.schema import Config
from mmkd.errors import ConfigError
from mmkd.objectives import CrossEntropy, ForwardKL
from mmkd.objectives.kernels import check_kernels
from tests.objectives.sides import D_S, D_T, V, batch, outputs, side

CASES = {  # objective, options, whether tokens are weighted
    "cross_entropy by liger": ("cross_entropy", {"kernel": "liger"}, False),
    "weighted cross_entropy by liger": ("cross_entropy", {"kernel": "liger"}, True),
    "forward_kl by liger": ("forward_kl", {"kernel": "liger", "temperature": 2.0}, False),
    "reverse_kl by liger": ("reverse_kl", {"kernel": "liger"}, False),
    "generalised_js by liger": ("generalised_js", {"kernel": "liger", "beta": 0.3, "temperature": 0.7}, False),
    "cross_entropy by cut_cross_entropy": ("cross_entropy", {"kernel": "cut_cross_entropy"}, False),
    "weighted cross_entropy by cut_cross_entropy": ("cross_entropy", {"kernel": "cut_cross_entropy"}, True),
}


@pytest.fixture(scope="module")
def interpreted():
    pytest.importorskip("liger_kernel")
    pytest.importorskip("cut_cross_entropy")
    command = [sys.executable, str(Path(__file__).with_name("kernel_cases.py")), json.dumps(CASES)]
    around = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=around)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_equals_the_chunked_pass_in_value_gradient_and_report(interpreted, case):
    assert interpreted[case] < (5e-3 if "cut" in case else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_on_a_gpu_equals_the_chunked_pass(case, dtype, monkeypatch):
    if "cut" in case and dtype == torch.float32:
        pytest.skip("makes no gradients in fp32")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import kernel_cases

    assert kernel_cases.difference(*CASES[case], "cuda", dtype) < (
        1e-3 if dtype == torch.float32 else 2e-2
    )  # products in TF32, in bf16


@pytest.mark.parametrize("objective", [CrossEntropy(kernel="liger"), ForwardKL(kernel="liger")])
def test_a_batch_without_answers_gives_zero_and_zero_gradients(objective):
    (hs, fs), (ht, ft) = side(D_S, V, tokens=0), side(D_T, V, seed=1, tokens=0)
    student, teacher = outputs(hs, fs), outputs(ht, ft)
    student.head_weight, teacher.head_weight = fs.weight, ft.weight
    losses = objective(student, teacher, batch(torch.zeros(0, dtype=torch.long)))
    losses.loss.backward()
    assert losses.loss.item() == 0.0
    assert fs.weight.grad.abs().sum() == 0
    assert all(ratio.total == 0 and ratio.count == 0 for ratio in losses.report.values())


def test_a_head_that_is_more_than_a_product_is_refused():
    hs, fs = side(D_S, V)
    with pytest.raises(ConfigError, match=r"liger takes a head that is a product .* the student's has a bias"):
        CrossEntropy(kernel="liger")(outputs(hs, fs), None, batch(torch.zeros(len(hs), dtype=torch.long)))


def config(name="cross_entropy", kernel="liger", teacher=None, zero=2, precision="bf16", device="auto", data=None):
    return Config.model_validate(
        {
            "student": {"init": "runs/none"},
            "teacher": teacher,
            "objectives": [{"name": name, "kernel": kernel}],
            "data": {"mixture": [{"source": "easyvqa"}]} | (data or {}),
            "stages": [{"name": "tune", "steps": 1}],
            "deepspeed": {"stage": zero},
            "training": {"precision": precision, "device": device},
        }
    )


CACHED = {"kind": "cached", "store": "s"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "cross_entropy: kernel liger runs on a CUDA GPU, and this run is on a CPU. Use kernel"),
        ({"zero": 3}, r"takes the whole weight of the head, and deepspeed.stage 3 cuts it up \(stage 2 does not\)"),
        ({"kernel": "cut_cross_entropy", "precision": "fp32"}, "makes gradients in bf16 only, and training.precision"),
        ({"name": "forward_kl", "teacher": CACHED}, "forward_kl: kernel liger compares whole distributions"),
        ({"name": "generalised_js", "data": {"rationales": {}}}, "gives the sum over all tokens, and data.rationales"),
        ({"name": "forward_kl", "kernel": "cut_cross_entropy"}, "expected one of: chunked, liger"),
        ({"kernel": "ligar"}, "kernel='ligar', expected one of: chunked, liger, cut_cross_entropy"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused_before_anything_is_loaded(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=message):
        check_kernels(config(**options))


def test_a_machine_without_a_gpu_or_without_the_package_is_told_so_and_chunked_runs_on_any(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="runs on a CUDA GPU"):
            check_kernels(config())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package liger-kernel: pip install 'mmkd\[kernels\]'"):
        check_kernels(config())
    check_kernels(config(kernel="chunked"))
