"""The only place that meets [tokens, vocabulary].

Answer tokens go through the heads in chunks, so that peak memory does not grow with the number of tokens. Where the
student's head is a product with a weight that is whole here, gradients of a chunk are made as soon as its loss is known
(as Liger does, Hsu et al. 2024, arXiv 2410.10989), and no logits are made twice. Else, as under a soft cap, all chunks
but the last are forgotten and computed again in backward. A batch that fits one chunk takes the ordinary way. Heads are
called as modules, so that ZeRO-3 gathers their weights where the caller has not; matrix products stay in the heads'
dtype, only log-probabilities are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmkd.objectives import sparse
from mmkd.objectives.divergences import kl
from mmkd.objectives.sparse import SparseTargets

Head = Callable[[Tensor], Tensor]  # [n, D] -> [n, V]


class ChunkLogits:
    """Logits of n answer tokens on both sides; each log-softmax is computed once, whoever asks.

    Attributes:
        student: [n, V_s]; teacher: [n, V_t], without gradient, or what a cache kept of it, or None.
        targets: [n] next-token ids.
        weights: [n] of the tokens, or None.
        shared: ids below this exist on both sides; rows of padding and tokens that one side alone has lie above.
    """

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor | SparseTargets | None,
        targets: Tensor,
        vocabulary: int | None = None,
        weights: Tensor | None = None,
    ):
        self.student = student
        self.weights = weights
        self.teacher = teacher
        self.targets = targets
        widths = [student.shape[-1]]
        if teacher is not None:
            widths.append(teacher.vocabulary if isinstance(teacher, SparseTargets) else teacher.shape[-1])
        self.shared = min([*widths, vocabulary] if vocabulary is not None else widths)
        self._known: dict[tuple[str, float, int], Tensor] = {}

    def student_log_probs(self, temperature: float = 1.0, shared: bool = True) -> Tensor:
        """fp32 log-probabilities over the shared ids, [n, shared], or over all the student's, [n, V_s]."""
        return self._log_probs("student", self.student, temperature, shared)

    def teacher_log_probs(self, temperature: float = 1.0) -> Tensor:
        """fp32 log-probabilities over the shared ids, [n, shared]."""
        return self._log_probs("teacher", self.teacher_logits(), temperature, True)

    def teacher_logits(self) -> Tensor:
        """[n, V_t]. Raises ValueError where the loss was given no teacher, or one that kept some tokens only."""
        if not isinstance(self.teacher, Tensor):
            raise ValueError("this chunk has no teacher logits.")
        return self.teacher

    def interpolated_log_probs(self, t: Tensor) -> Tensor:
        """fp32 log-softmax of (1 - t) student + t teacher logits over the shared ids, [n, shared]; no gradient."""
        with torch.no_grad():
            dtype = torch.promote_types(self.student.dtype, torch.float32)
            student, teacher = (side[:, : self.shared].to(dtype) for side in (self.student, self.teacher_logits()))
            return torch.log_softmax(torch.lerp(student, teacher, t.to(dtype)), -1)

    def _log_probs(self, side: str, logits: Tensor, temperature: float, shared: bool) -> Tensor:
        width = self.shared if shared else logits.shape[-1]
        key = (side, temperature, width)
        if key not in self._known:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            logits = logits[:, :width]
            if temperature == 1.0:
                self._known[key] = torch.log_softmax(logits, -1, dtype=dtype)  # casts inside the kernel
            else:
                self._known[key] = torch.log_softmax(logits.to(dtype) / temperature, -1)
        return self._known[key]


def split_sizes(tokens: int, chunk: int, calls: int | None = None) -> list[int]:
    """Chunk sizes for so many tokens: as few chunks as `chunk` allows, of equal size within one, at least one.

    `calls` sets the number of chunks instead. Under ZeRO-3 every call of a head is a collective, so all ranks must
    agree on it: the largest `len(split_sizes(tokens, chunk))` over the ranks. Chunks may then be empty; heads take
    [0, D].
    """
    needed = max(1, -(-tokens // chunk))
    count = needed if calls is None else calls
    if count < needed:
        raise ValueError(f"{tokens} tokens in chunks of {chunk} need {needed} head calls, {calls} were given.")
    return [tokens // count + (i < tokens % count) for i in range(count)]


def sum_over_chunks(
    function: Callable[[ChunkLogits], tuple[Tensor, Tensor]],
    targets: Tensor,
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | None = None,
    *,
    sparse_teacher: SparseTargets | None = None,
    chunk: int = 512,
    calls: int | None = None,
    vocabulary: int | None = None,
    weights: Tensor | None = None,
    head_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum `function(logits) -> (losses [m], numbers [r])` over chunks of answer tokens.

    Args:
        function: `losses` carry gradients, `numbers` are only reported; both are sums over the chunk's tokens.
        targets: [N]; student_hidden: [N, D_s]; teacher_hidden: [N, D_t], detached here.
        sparse_teacher: N rows of a cache, in place of the teacher's hidden states and head.
        chunk, calls: see `split_sizes`.
        vocabulary: real token ids lie below this on both sides.
        weights: [N], handed to `function`.
        head_weight: [V_s, D_s] of which `student_head` is the product and nothing else, where m = 1.

    Returns: losses [m] and numbers [r] over all N tokens. Tied to `student_hidden` also where N = 0.
    """

    def compare(
        logits: Tensor, other: Tensor | SparseTargets | None, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher = teacher_head(other) if isinstance(other, Tensor) and teacher_head is not None else other
        losses, numbers = function(ChunkLogits(logits, teacher, target, vocabulary, weight))
        return losses, numbers.detach()

    def run(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return compare(student_head(hidden), *rest)

    sizes = split_sizes(len(targets), chunk, calls)
    others: Sequence[Tensor | SparseTargets | None] = [None] * len(sizes)
    if teacher_hidden is not None:
        others = teacher_hidden.detach().split(sizes)
    elif sparse_teacher is not None:
        others = sparse_teacher.split(sizes)
    shares: Sequence[Tensor | None] = [None] * len(sizes) if weights is None else weights.split(sizes)
    rests = list(zip(others, targets.split(sizes), shares, strict=True))
    if head_weight is not None and len(sizes) > 1 and torch.is_grad_enabled():
        return _GradientsAhead.apply(student_hidden, head_weight, student_head, compare, sizes, rests)
    results = []
    for index, (hidden, rest) in enumerate(zip(student_hidden.split(sizes), rests, strict=True)):
        if torch.is_grad_enabled() and index + 1 < len(sizes):
            results.append(checkpoint(run, hidden, *rest, use_reentrant=False, preserve_rng_state=False))
        else:  # kept: backward starts with it, so it never stands beside another
            results.append(run(hidden, *rest))
    losses, numbers = zip(*results, strict=True)
    return torch.stack(losses).sum(0), torch.stack(numbers).sum(0)


class _GradientsAhead(torch.autograd.Function):
    """The sum over chunks of one loss through a head that is hidden @ weight.T. The gradients of both are made chunk by
    chunk beside the loss, and wait for the factor that backward brings."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, head: Head, compare: Any, sizes: Any, rests: Any) -> Any:
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # A sum over chunks in bf16 would lose more the more chunks there are.
        wide = torch.promote_types(weight.dtype, torch.float32)
        to_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None  # [V, D]
        results, first = [], 0
        for states, rest in zip(hidden.split(sizes), rests, strict=True):
            logits = head(states)  # [n, V]
            with torch.enable_grad():
                logits.requires_grad_()
                losses, numbers = compare(logits, *rest)
                [slope] = torch.autograd.grad(losses.sum(), logits)  # [n, V]
            results.append((losses.detach(), numbers))
            del logits, losses
            with torch.autocast(hidden.device.type, enabled=False):
                slope = slope.to(weight.dtype)
                if to_hidden is not None:
                    to_hidden[first : first + len(states)] = slope @ weight
                if to_weight is not None:
                    if to_weight.dtype == weight.dtype:
                        to_weight.addmm_(slope.T, states.to(weight.dtype))
                    else:
                        to_weight += slope.T @ states.to(weight.dtype)
            first += len(states)
        ctx.save_for_backward(to_hidden, None if to_weight is None else to_weight.to(weight.dtype))
        losses, numbers = (torch.stack(part).sum(0) for part in zip(*results, strict=True))
        ctx.mark_non_differentiable(numbers)
        return losses, numbers

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        factor = slopes[0]  # [1]; `numbers` have none. Cast to bf16 it would be off by up to 0.4 %, the same for all.
        to_hidden, to_weight = (
            None if side is None else torch.mul(side, factor, out=torch.empty_like(side)) for side in ctx.saved_tensors
        )
        return to_hidden, to_weight, None, None, None, None


def cross_entropy(logits: ChunkLogits) -> Tensor:
    """-log p(target), [n], over the student's whole vocabulary."""
    return -logits.student_log_probs(shared=False).gather(1, logits.targets[:, None])[:, 0]


def forward_kl(logits: ChunkLogits, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, [n] (Hinton et al. 2015); with a cached teacher see `sparse`."""
    student = logits.student_log_probs(temperature)
    if isinstance(logits.teacher, SparseTargets):
        return temperature**2 * sparse.forward_kl(logits.teacher, student)
    return temperature**2 * kl(logits.teacher_log_probs(temperature), student)


def answer_log_probs(hidden: Tensor, head: Head, targets: Tensor, chunk: int = 512, calls: int | None = None) -> Tensor:
    """log p(target) of each token, [N], fp32, over the whole vocabulary, for losses of whole answers.

    Args:
        hidden: [N, D]; targets: [N]; chunk, calls: see `split_sizes`.
    """

    def run(states: Tensor, target: Tensor) -> Tensor:
        return -cross_entropy(ChunkLogits(head(states), None, target))

    sizes = split_sizes(len(targets), chunk, calls)
    pieces = list(zip(hidden.split(sizes), targets.split(sizes), strict=True))
    kept = []
    for index, piece in enumerate(pieces):
        if torch.is_grad_enabled() and index + 1 < len(pieces):
            kept.append(checkpoint(run, *piece, use_reentrant=False, preserve_rng_state=False))
        else:
            kept.append(run(*piece))
    return torch.cat(kept)
