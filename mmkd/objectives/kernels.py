"""Token losses that a GPU kernel computes together with the head's product: Liger (Hsu et al. 2024, arXiv 2410.10989)
and cut cross-entropy (Wijmans et al. 2024, arXiv 2411.09009).

Optional, and equal to `chunked`: both are asked for sums over tokens, gradients summed in fp32, and none left out as
too small. Liger has the gradients when the forward pass ends, so no logits are made twice; cut cross-entropy makes no
logits at all. They take the head's weight, not its module: it must be a plain product, whole on every rank.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmkd.errors import ConfigError
from mmkd.objectives.base import AnswerBatch, Losses, Outputs, Ratio
from mmkd.objectives.registry import build
from mmkd.objectives.token_loss import Divergence, TokenLoss

if TYPE_CHECKING:
    from mmkd.config.schema import Config

MODULES = {"liger": "liger_kernel", "cut_cross_entropy": "cut_cross_entropy"}


def check_kernels(config: Config) -> None:
    """Refuse kernels that this machine has not, or that the run cannot use, before any weight is loaded.

    Raises: ConfigError.
    """
    for stage in config.stages:
        for objective in (build(section) for section in stage.objectives or config.objectives):
            if isinstance(objective, TokenLoss) and objective.kernel != "chunked":
                _check(objective, config)


def _check(objective: TokenLoss, config: Config) -> None:
    kernel, pair = objective.kernel, isinstance(objective, Divergence)
    on_gpu = torch.cuda.is_available() and config.training.device != "cpu"
    teacher = config.teacher
    wrong = {
        "runs on a CUDA GPU, and this run is on a CPU": not on_gpu and not _interpreted(),
        "takes the whole weight of the head, and deepspeed.stage 3 cuts it up (stage 2 does not)":
            config.deepspeed.stage == 3,
        "makes gradients in bf16 only, and training.precision is fp32":
            kernel == "cut_cross_entropy" and config.training.precision == "fp32",
        "compares whole distributions, and teacher.kind cached keeps some tokens of them":
            pair and teacher is not None and teacher.kind == "cached",
        "takes the whole weight of the teacher's head, and teacher.zero3 cuts it up":
            pair and teacher is not None and teacher.zero3,
        "gives the sum over all tokens, and data.rationales weighs them": pair and config.data.rationales is not None,
    }  # fmt: skip
    _require_package(objective)
    for reason, holds in wrong.items():
        if holds:
            raise ConfigError(f"{objective.name}: kernel {kernel} {reason}. Use kernel: chunked, the default.")


def cross_entropy(objective: TokenLoss, student: Outputs, batch: AnswerBatch) -> Losses:
    """-log p(target) over the student's whole vocabulary. Reports "ce", and by Liger "accuracy"."""
    hidden, weight, targets = student.answer_hidden, _weight(objective, student, "student"), batch.answer_ids
    # Liger makes gradients in the forward pass only where a sum is all that is asked for.
    reduction = "sum" if batch.weights is None else "none"
    hits = None
    if len(targets) == 0:
        loss = hits = student.head(hidden).sum(-1)  # zero, tied to both
    elif objective.kernel == "liger":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found = liger_fused_linear_cross_entropy(
            hidden, weight, targets, reduction=reduction, accum_dtype=torch.float32, return_token_accuracy=True
        )
        loss, hits = found.loss, found.token_accuracy.mean() * len(targets)
    else:
        from cut_cross_entropy import linear_cross_entropy

        loss = linear_cross_entropy(hidden, weight, targets, reduction=reduction, filter_eps=None)
    weighted = loss if batch.weights is None else loss * batch.weights
    sums = {"ce": loss} if objective.kernel == "cut_cross_entropy" else {"ce": loss, "accuracy": hits}
    return _losses(weighted, sums, batch)


def divergence(
    objective: Divergence, beta: float, student: Outputs, teacher: Outputs | None, batch: AnswerBatch
) -> Losses:
    """T^2 JS(beta) over the ids that both sides have, by Liger: at beta = 0 it takes KL(teacher || student), at 1
    KL(student || teacher), else what `generalised_js` is. Reports the loss under its label."""
    if teacher is None:
        raise ValueError(f"{objective.name}: the teacher's outputs are missing.")
    if batch.weights is not None:
        raise ConfigError(f"{objective.name}: kernel {objective.kernel} has no weights of tokens; use kernel: chunked.")
    ours, theirs = _weight(objective, student, "student"), _weight(objective, teacher, "teacher").detach()
    known = [student.vocabulary, teacher.vocabulary, len(ours), len(theirs)]
    shared = min(width for width in known if width is not None)
    tokens = len(batch.answer_ids)
    if tokens == 0:
        loss = student.head(student.answer_hidden).sum()
    else:
        from liger_kernel.transformers.functional import liger_fused_linear_jsd

        mean = liger_fused_linear_jsd(
            student.answer_hidden,
            ours[:shared],
            teacher.answer_hidden.detach(),
            theirs[:shared],
            jsd_beta=beta,
            temperature=objective.temperature,
            accum_dtype=torch.float32,
        )
        loss = objective.temperature**2 * tokens * mean
    return _losses(loss, {objective.label: loss}, batch)


def _losses(loss: Tensor, sums: dict[str, Tensor], batch: AnswerBatch) -> Losses:
    count = torch.tensor(float(len(batch.answer_ids)), device=loss.device)
    report = {name: Ratio(total.detach().float().sum(), count) for name, total in sums.items()}
    return Losses(loss.sum() / batch.normalizer, report)


def _weight(objective: TokenLoss, side: Outputs, whose: str) -> Tensor:
    _require_package(objective)
    if side.head_weight is None:
        raise ConfigError(
            f"{objective.name}: kernel {objective.kernel} takes a head that is a product and nothing else, and the "
            f"{whose}'s has a bias, a soft cap, a scale or adapters, or is cut up. Use kernel: chunked."
        )
    return side.head_weight


def _require_package(objective: TokenLoss) -> None:
    module = MODULES[objective.kernel]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{objective.name}: kernel {objective.kernel} needs the package {module.replace('_', '-')}: pip install "
            "'mmkd[kernels]', or use kernel: chunked, which needs none."
        )


def _interpreted() -> bool:
    """Whether Triton interprets its kernels, slowly, on a CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
