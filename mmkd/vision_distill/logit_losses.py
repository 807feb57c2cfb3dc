"""Losses of class logits [B, K]: binary cross-entropy with the labels, and the baselines KD, DKD and DIST, which
compare with the teacher's. All computed in fp32, no gradient to the teacher."""

from __future__ import annotations

import torch
from torch import Tensor


def binary_cross_entropy(student: Tensor, shares: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(y log s(z) + (1 - y) log(1 - s(z))), s the logistic function, y the target (Wightman et al. 2021).

    The mean over classes as over the batch, as in OFA-KD's program: K times smaller than a sum over classes.

    Args:
        shares: [B, K] of the classes in each image; y = (1 - smoothing) shares + smoothing / K.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    targets = (1 - smoothing) * shares.to(dtype) + smoothing / shares.shape[1]
    return torch.nn.functional.binary_cross_entropy_with_logits(student.to(dtype), targets)


def kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student), mean over the batch (Hinton et al. 2015)."""
    log_q, log_p = _log_probs(student, teacher, temperature)
    return temperature**2 * _kl(log_p, log_q).mean()


def dkd(
    student: Tensor, teacher: Tensor, targets: Tensor, alpha: float = 1.0, beta: float = 2.0, temperature: float = 1.0
) -> Tensor:
    """Decoupled KD (Zhao et al., CVPR 2022, eq. 7): alpha TCKD + beta NCKD, times T^2, mean over the batch.

    TCKD is the KL between (p_c, 1 - p_c) of both sides, NCKD the KL between both sides' distributions over the classes
    other than the target c.

    Args:
        targets: [B].
    """
    log_q, log_p = _log_probs(student, teacher, temperature)
    target = torch.zeros_like(log_q, dtype=torch.bool).scatter(1, targets[:, None], True)  # [B, K]
    keep = (~target).nonzero()[:, 1].view(len(targets), -1)  # [B, K - 1] the classes that are not the target

    def split(log_probs: Tensor) -> tuple[Tensor, Tensor]:
        others = log_probs.gather(1, keep)  # [B, K - 1]
        rest = others.logsumexp(-1, keepdim=True)  # log(1 - p_c)
        return torch.cat([log_probs[target][:, None], rest], 1), others - rest

    (student_pair, student_others), (teacher_pair, teacher_others) = split(log_q), split(log_p)
    tckd, nckd = _kl(teacher_pair, student_pair), _kl(teacher_others, student_others)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """DIST (Huang et al., NeurIPS 2022, eqs. 8-10): beta * inter + gamma * intra, times T^2.

    Both are 1 - Pearson's correlation of the probabilities: inter over the classes of each sample, intra over the
    samples of each class; means over samples and classes. The batch needs two samples for intra to say anything.
    """
    log_q, log_p = _log_probs(student, teacher, temperature)
    q, p = log_q.exp(), log_p.exp()
    inter, intra = (1 - _pearson(q, p)).mean(), (1 - _pearson(q.T, p.T)).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype) / temperature, teacher.detach().to(dtype) / temperature
    return torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, [B]."""
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row, [rows]; 0 where a row is constant."""
    return torch.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1)
