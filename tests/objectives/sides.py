"""Random sides of a token loss, and what tests compare."""

import weakref
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd.objectives import AnswerBatch, Outputs

N, D_S, D_T, V = 23, 12, 20, 41
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass
class Section:
    name: str
    given: dict = field(default_factory=dict)
    weight: float = 1.0

    def options(self):
        return self.given


def side(width, vocabulary, dtype=torch.float64, seed=0, tokens=N):
    """Random hidden states [N, D] and a head D -> V."""
    torch.manual_seed(seed)
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    nn.init.normal_(head.weight, std=0.5)
    hidden = torch.randn(tokens, width, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, head


def outputs(hidden, head, vocabulary=None):
    none = torch.zeros(1, 0, dtype=torch.bool)
    return Outputs(hidden, head, {}, none, none, none.long(), vocabulary=vocabulary)


def batch(targets, normalizer=1.0, calls=None):
    zeros = torch.zeros(len(targets), dtype=torch.long)
    return AnswerBatch(targets, zeros, zeros, torch.ones(1, 1).bool(), torch.zeros(1, 1).long(), normalizer, calls)


def random_targets(vocabulary=V, tokens=N):
    return torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(7))


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True)


NOTED = []  # (dtype, error) of each comparison of a test, which tells bench.exactness of them


def close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        scale = b.double().abs().max().clamp(min=1e-30)
        error = ((a.double() - b.double()).abs().max() / scale).item()
        NOTED.append((dtype, error))
        assert error < TOLERANCE[dtype]


class LivePeak(TorchDispatchMode):
    """Largest number of elements alive at once in tensors as wide as the vocabulary."""

    def __init__(self, width):
        super().__init__()
        self.width, self.live, self.peak = width, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in result if isinstance(result, (tuple, list)) else [result]:
            fresh = isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known
            if fresh and t.ndim == 2 and t.shape[-1] == self.width:
                self.live += t.numel()
                self.peak = max(self.peak, self.live)
                weakref.finalize(t, self.freed, t.numel())
        return result

    def freed(self, numel):
        self.live -= numel
