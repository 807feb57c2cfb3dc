"""What a cache keeps of a teacher's distribution at each answer token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmkd.config.load import check_options
from mmkd.config.schema import TeacherSection
from mmkd.data.teacher_rows import HIDDEN, Rows
from mmkd.objectives.checks import choice, count, number
from mmkd.objectives.chunked import Head, split_sizes

CHUNK = 512  # answer tokens whose logits stand in memory at once
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class TargetSettings:
    """Options of `teacher.kind: cached`; those of sampling follow "Sparse Logit Sampling" (Anshumann et al. 2025,
    arXiv 2503.16870).

    Attributes:
        targets: top_k keeps the k likeliest ids and the mass of all others; sample draws k ids, with replacement.
        k: ids kept, or drawn, for an answer token.
        temperature: T that softens the teacher; the objective's has to be the same.
        proposal: sample draws from p^proposal, normalised; 1 is the teacher itself.
        dtype: of the numbers on disk.
        hidden_layers: decoder layers of the teacher, from 0, whose outputs at the answer rows are kept bit by bit.
    """

    targets: Literal["top_k", "sample"] = "top_k"
    k: int = 64
    temperature: float = 1.0
    proposal: float = 1.0
    dtype: Literal["float16", "float32"] = "float16"
    hidden_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choice("teacher", "targets", self.targets, ("top_k", "sample"))
        choice("teacher", "dtype", self.dtype, tuple(DTYPES))
        if count("teacher", "k", self.k) > 65535:
            number("teacher", "k", self.k, most=65535)
        number("teacher", "temperature", self.temperature, above=0)
        number("teacher", "proposal", self.proposal, above=0)
        if any(layer < 0 for layer in self.hidden_layers):
            number("teacher", "hidden_layers", min(self.hidden_layers), least=0)
        object.__setattr__(self, "hidden_layers", tuple(sorted(set(self.hidden_layers))))


def given_settings(section: TeacherSection) -> dict[str, object]:
    """The options of a cached teacher that a config names. Raises ConfigError for unknown ones and wrong values."""
    given = check_options("teacher.kind: cached", section.options(), TargetSettings, at="teacher")
    settings = TargetSettings(**given)  # pyright: ignore[reportArgumentType]
    return {name: getattr(settings, name) for name in given}


@torch.no_grad()
def keep(
    hidden: Tensor, head: Head, answer_ids: Tensor, vocabulary: int, settings: TargetSettings, uniforms: Tensor | None
) -> Rows:
    """What is kept of N answer tokens, as arrays: see `mmkd.data.teacher_rows.stacked`.

    Args:
        hidden: [N, D] the teacher's hidden states; head: [n, D] -> [n, V_t], called in chunks.
        answer_ids: [N]; vocabulary: ids below this are kept.
        uniforms: [N, k] numbers in [0, 1) that decide what a sample draws; see `uniforms_of`.
    """
    sizes = split_sizes(len(hidden), CHUNK)
    draws = uniforms.split(sizes) if uniforms is not None else [None] * len(sizes)
    parts = []
    for states, ids, drawn in zip(hidden.split(sizes), answer_ids.split(sizes), draws, strict=True):
        logits = head(states)[:, :vocabulary].float()  # [n, V]
        plain = logits.log_softmax(-1)
        soft = plain if settings.temperature == 1.0 else (logits / settings.temperature).log_softmax(-1)
        if drawn is None:
            kept = _top_k(soft, settings.k)
        else:
            kept = _sample(soft, settings.proposal, drawn.to(soft.device))
        known = ids < vocabulary
        answers = plain.gather(1, ids.clamp(max=vocabulary - 1)[:, None])[:, 0]
        kept |= {"answers": torch.where(known, answers, torch.nan), "best": plain.argmax(-1)}
        parts.append(kept)
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: stored(name, tensor, vocabulary, DTYPES[settings.dtype]) for name, tensor in together.items()}


def keep_hidden(hidden: dict[int, Tensor]) -> Rows:
    """Hidden states [N, D] of layers as arrays, in their own dtype: see `mmkd.data.teacher_rows.hidden_of`."""
    found = {}
    for layer, states in hidden.items():
        states = states.cpu().contiguous()
        bits = states.view(torch.uint16) if states.dtype is torch.bfloat16 else states
        found[f"{HIDDEN}{layer}"] = bits.numpy()
    return found


def uniforms_of(keys: Sequence[bytes], counts: Sequence[int], k: int) -> Tensor:
    """Numbers in [0, 1), [sum of counts, k]: for each sample a function of its key, so that no order or machine or
    kill changes what is drawn for it."""
    drawn = [
        np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key).digest()[:16]))).integers(
            2**32, size=(count, k)
        )
        for key, count in zip(keys, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(drawn) / 2**32)


def _top_k(log_probs: Tensor, k: int) -> dict[str, Tensor]:
    values, ids = log_probs.topk(k, -1)  # [n, k]
    others = log_probs.scatter(1, ids, -torch.inf).logsumexp(-1)
    counts = torch.full((len(ids),), k, device=ids.device)
    return {"ids": ids.flatten(), "log_probs": values.flatten(), "counts": counts, "tail": others}


def _sample(log_probs: Tensor, proposal: float, uniforms: Tensor) -> dict[str, Tensor]:
    """Ids drawn from q = p^proposal / sum, each once, with weights count / draws * p / q."""
    log_q = (log_probs.double() * proposal).log_softmax(-1)  # [n, V]
    mass = log_q.exp().cumsum(-1)
    drawn = torch.searchsorted(mass, uniforms * mass[:, -1:], right=True).clamp(max=log_q.shape[-1] - 1)
    drawn = drawn.sort(-1).values  # [n, k]
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    group = first.flatten().cumsum(0) - 1  # which different id of all rows each draw is
    times = torch.bincount(group).double()
    row = torch.arange(len(drawn), device=drawn.device)[:, None].expand_as(drawn)[first]
    ids = drawn[first]
    found = log_probs[row, ids]
    weights = times / drawn.shape[1] * (found - log_q[row, ids]).exp()
    return {"ids": ids, "log_probs": found, "weights": weights, "counts": first.sum(-1)}


def stored(name: str, tensor: Tensor, vocabulary: int, dtype: torch.dtype) -> np.ndarray:
    """Numbers as the store has them: ids in as few bytes as do, log-probabilities and weights in `dtype`."""
    array = tensor.cpu()
    if name == "counts":
        return array.numpy().astype(np.uint16)
    if name in ("ids", "best"):
        return array.numpy().astype(np.uint16 if vocabulary <= 65536 else np.int32)
    # An empty tail is log 0: the lowest number there is, since no objective may meet an infinite one.
    return array.clamp(min=torch.finfo(dtype).min).to(dtype).numpy()
