"""Kernels beside the chunked pass. As a program: cases in Triton's interpreter, told as JSON.

The interpreter has to be chosen before triton is imported, so a process of its own runs them on a CPU.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from sides import D_S, D_T, N, Section, V, batch, outputs, random_targets, side

from mmkd.objectives import Losses, build


@triton.jit
def log1p(a):
    return tl.log(1 + a)


def difference(name: str, options: dict[str, Any], weighted: bool, device: str, dtype: torch.dtype) -> float:
    """Largest relative difference, in value, both gradients and report, between a kernel and the chunked pass in
    float64, for a student whose vocabulary is padded to another width than the teacher's."""
    weights = torch.linspace(0.2, 3.0, N, device=device) if weighted else None

    def run(dtype: torch.dtype, **given: Any) -> tuple[Losses, list[torch.Tensor]]:
        (hs, fs), (ht, ft) = side(D_S, V + 5), side(D_T, V + 3, seed=1)
        hs, ht = (hidden.detach().to(device, kept).to(dtype) for hidden in (hs, ht))
        hs.requires_grad_()
        fs, ft = (head.to(device, kept).to(dtype) for head in (fs, ft))
        student, teacher = outputs(hs, fs, V), outputs(ht, ft, V)
        student.head_weight, teacher.head_weight = fs.weight, ft.weight
        answers = replace(batch(random_targets().to(device), normalizer=7.0), weights=weights)
        losses = build(Section(name, given))(student, teacher, answers)
        return losses, [losses.loss, *torch.autograd.grad(losses.loss, (hs, fs.weight))]

    kept = dtype  # what both are given, rounded alike
    losses, found = run(dtype, **options)
    exact, expected = run(torch.float64, **{key: value for key, value in options.items() if key != "kernel"})
    found += [ratio.total / ratio.count for ratio in losses.report.values()]
    expected += [exact.report[key].total / N for key in losses.report]
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def interpreted(cases: dict[str, tuple[str, dict[str, Any], bool]]) -> dict[str, float]:
    """The differences on a CPU. Two things that the interpreter lacks are got round for cut cross-entropy: a function
    of CUDA's library, and bf16, in the place of which fp16 is taken."""
    from cut_cross_entropy import tl_utils

    tl_utils.tl_log1p = log1p
    return {
        case: difference(*what, "cpu", torch.float16 if "cut" in case else torch.float32)
        for case, what in cases.items()
    }


if __name__ == "__main__":
    print(json.dumps(interpreted(json.loads(sys.argv[1]))))
