"""Baselines that compare features: FitNet, CRD, RKD. All computed in fp32, under autocast too, which would round the
cosines and so what is divided by a temperature of 0.07; no gradient to the teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, mse_loss, normalize, smooth_l1_loss


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two maps [B, C, rows, cols] (Romero et al., ICLR 2015, eq. 3), the student's adapted to
    the teacher's width. Both are averaged down to the coarser of the two grids, since a finer one cannot be known."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    grid = [min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    return mse_loss(resampled(student.to(dtype), grid), resampled(teacher.detach().to(dtype), grid))


def resampled(features: Tensor, grid: list[int]) -> Tensor:
    """[B, C, rows, cols] averaged by area to `grid` (rows, cols), odd ones too."""
    return features if list(features.shape[-2:]) == grid else adaptive_avg_pool2d(features, grid)


def crd(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 0.07) -> Tensor:
    """Contrastive representation distillation (Tian et al., ICLR 2020) with the negatives of the batch.

    The paper keeps a memory bank of negatives for a noise-contrastive estimate of the bound; here the bound is InfoNCE
    over the batch (van den Oord et al. 2018), in both directions, which needs no state. As in the paper, images of the
    same class are no negatives.

    Args:
        student, teacher: [B, D] embeddings; they are brought to length 1 here.
        targets: [B] classes.

    Gradients reach both sides' embeddings, as the teacher's is a learned projection of detached features.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        scores = normalize(student.to(dtype), dim=-1) @ normalize(teacher.to(dtype), dim=-1).T / temperature  # [B, B]
    same_class = targets[:, None] == targets[None, :]
    scores = scores.masked_fill(same_class & ~torch.eye(len(targets), dtype=torch.bool, device=scores.device), -1e4)
    pairs = torch.arange(len(targets), device=scores.device)
    return cross_entropy(scores, pairs) + cross_entropy(scores.T, pairs)


def rkd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational KD (Park et al., CVPR 2019, eqs. 4-8): distance * L_D + angle * L_A on embeddings [B, D].

    L_D is the Huber loss between both sides' pairwise distances, each divided by its mean; L_A between the cosines of
    the angles that triplets form. Means run over pairs and triplets of different samples. 0 for one sample. An angle
    towards a sample that is all but the same (one image twice in a batch, apart by rounding) counts for nothing: its
    gradient grows without end.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    count = len(student)
    if count < 2:
        return 0.0 * student.sum()
    distinct = ~torch.eye(count, dtype=torch.bool, device=student.device)  # [B, B]
    loss = distance * smooth_l1_loss(_distances(student, distinct), _distances(teacher, distinct))
    if count < 3:
        return loss
    # [j, i, k]: at vertex j, towards i and k
    apart = _apart(student, distinct) & _apart(teacher, distinct)
    triplets = apart[:, :, None] & apart[:, None, :] & distinct[None]
    angles = smooth_l1_loss(_cosines(student)[triplets], _cosines(teacher)[triplets], reduction="sum")
    return loss + angle * angles / triplets.sum().clamp_min(1)


def _distances(embeddings: Tensor, distinct: Tensor) -> Tensor:
    """Distances of all pairs of different samples, divided by their mean, [B * (B - 1)]."""
    gaps = (embeddings[:, None] - embeddings[None])[distinct]  # [B * (B - 1), D]
    lengths = torch.linalg.vector_norm(gaps, dim=-1)  # equal samples have no gap, and no gradient
    return lengths / lengths.mean().clamp_min(1e-12)


@torch.no_grad()
def _apart(embeddings: Tensor, distinct: Tensor) -> Tensor:
    """Pairs whose direction is more than rounding: further from each other than 1e-4 of the mean distance, [B, B]."""
    lengths = torch.linalg.vector_norm(embeddings[:, None] - embeddings[None], dim=-1)
    return distinct & (lengths > 1e-4 * lengths[distinct].mean())


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosine of the angle at j between i and k, [B (j), B (i), B (k)]."""
    towards = normalize(embeddings[None] - embeddings[:, None], dim=-1)  # [j, i, D]
    with torch.autocast(embeddings.device.type, enabled=False):
        return towards @ towards.transpose(1, 2)
