"""OFA-KD on logits: soft cross-entropy with an enhanced target (Hao et al., NeurIPS 2023, arXiv 2310.19444).

With p^t, p^s the teacher's and the student's probabilities, c the target and eps (gamma in the paper) >= 1, a student
learns from

    paper:     L = -(1 + p^t_c)^eps log p^s_c              - sum_{i != c} p^t_i       log p^s_i
    released:  L = -((1 + p^t_c)^eps - 1) log p^s_c        - sum_{i != c} (p^t_i)^eps log p^s_i

The paper's form holds the cross-entropy of the label (eps = 1 is that plus soft cross-entropy) and keeps the teacher's
other classes as they are. The form of the authors' program holds no label loss and shrinks the whole where the teacher
is unsure of the target; at eps = 1 it is soft cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmkd.errors import ConfigError
from mmkd.objectives.checks import number

Form = Literal["paper", "released"]
FORMS: tuple[str, ...] = ("paper", "released")


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    eps: float = 1.0,
    form: Form = "paper",
    temperature: float = 1.0,
) -> Tensor:
    """Loss of each sample, [n], fp32 or wider; no gradient reaches the teacher.

    Args:
        student_logits, teacher_logits: [n, K].
        targets: [n] target classes.
        eps: enhancement of the target, >= 1.
        temperature: divides both sides' logits; the loss is not multiplied by its square, as published.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = torch.log_softmax(student_logits.to(dtype) / temperature, -1)
    teacher = torch.log_softmax(teacher_logits.detach().to(dtype) / temperature, -1)
    return ofa_from_log_probs(student, teacher, targets, eps=eps, form=form)


def ofa_from_log_probs(
    student: Tensor, teacher: Tensor, targets: Tensor, *, eps: float = 1.0, form: Form = "paper"
) -> Tensor:
    """As `ofa_loss`, from log-probabilities [n, K] that the caller has already."""
    others = (teacher * eps if form == "released" else teacher).exp()  # [n, K]
    target = teacher.gather(1, targets[:, None]).exp()  # [n, 1]
    enhanced = torch.log1p(target) * eps
    # expm1 keeps the small weights of targets that the teacher hardly believes in.
    weights = others.scatter(1, targets[:, None], enhanced.expm1() if form == "released" else enhanced.exp())
    # A class that both sides rule out has log-probability -inf and weight 0; their product would be no number.
    return -(weights * student.masked_fill(weights == 0, 0.0)).sum(-1)


def stage_eps(eps: float | Sequence[float], stages: int, name: str = "ofa") -> list[float]:
    """One eps for each staged exit, then that of the final logits.

    Args:
        eps: one value for all, or `stages` + 1 values; name: of the objective, for messages.

    Raises: ConfigError for another number of values, or one that is below 1.
    """
    values = [eps] * (stages + 1) if isinstance(eps, (int, float)) else list(eps)
    if len(values) != stages + 1:
        raise ConfigError(
            f"{name}: eps={eps!r} has {len(values)} values, expected one number, or {stages + 1}: one for each of the "
            f"{stages} stages, then the final logits'."
        )
    return [number(name, "eps", value, least=1) for value in values]
