"""Attention relations: how the queries, keys and values of one layer's tokens resemble each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmkd.errors import ConfigError
from mmkd.models.attention_capture import AttentionShape, LayerAttention
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import choice, count
from mmkd.objectives.layer_pairs import layer_choice, layer_pairs
from mmkd.objectives.registry import register
from mmkd.objectives.rows import HIDDEN, Rows, answer_rows

KINDS = ("qq", "kk", "vv")
NOBODY = -1  # segment of padding, which no row sees


@register("attention_relations")
class AttentionRelations(Objective):
    """MiniLMv2 (Wang et al., arXiv 2012.15828): match softmax(A A^T / sqrt(d_r)) of A = Q, K, V, head by head.

    The heads of each side are put together and cut anew into `heads` relation heads of width d_r, so that sides of any
    width and head count, grouped heads too, can be compared, and no trainable part is needed:

        L = mean over pairs of layers  sum over relations  mean over relation heads  KL(teacher row || student row)

    summed over answer rows. A row of QQ runs over the answer rows of its own sample, a row of KK and VV over all text
    tokens of it: what both sides have, whether n vision tokens or k compression tokens stand before the text. A sample
    of one answer token so learns from KK and VV alone. Q and K are compared before the rotary embedding, as in the
    paper, whose models have none: cut into other heads, rotated ones would depend on where the text begins. The teacher
    is detached.

    Args:
        layers: as of `voco_attention`; the last layer by default, the paper's choice for the student.
        relations: which of qq, kk, vv.
        heads: relation heads; divides what all heads together are wide, on both sides, of queries and of keys.
        chunk: answer rows of a sample whose relations stand in memory at once.
    """

    teacher = True

    def __init__(self, layers: Any = None, relations: Sequence[str] = KINDS, heads: int = 8, chunk: int = 256):
        super().__init__()
        self.layers = [-1] if layers is None else layer_choice(self.name, layers)
        given = relations if isinstance(relations, (list, tuple)) and relations else [relations]
        self.relations = [choice(self.name, "relations", kind, KINDS) for kind in given]
        if len(set(self.relations)) < len(self.relations):
            raise ConfigError(f"{self.name}: relations={relations!r} names one twice; name each once.")
        self.heads = count(self.name, "heads", heads)
        self.chunk = count(self.name, "chunk", chunk)
        self.pairs: list[tuple[int, int]] = []

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        self.pairs = layer_pairs(self.name, self.layers, student_layers, teacher_layers or student_layers)
        students, teachers = zip(*self.pairs, strict=True)
        layers = tuple(sorted(students)), tuple(sorted(set(teachers)))
        return Needs(True, *layers, turned=self.relations != ["vv"])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if teacher is None or not self.pairs:
            raise ValueError("attention_relations: call needs() first, and give it the teacher's outputs.")
        rows = answer_rows(batch, torch.ones_like(batch.rows, dtype=torch.bool))
        sums = torch.stack([self._layer(s, t, student, teacher, batch, rows) for s, t in self.pairs]).mean(0)  # [kinds]
        tokens = torch.tensor(len(batch.rows), device=sums.device)
        report = {"relations": Ratio(sums.detach().sum(), tokens)}
        for kind, total in zip(self.relations, sums.detach(), strict=True):
            report[f"relations_{kind}"] = Ratio(total, tokens)
        return Losses(sums.sum() / batch.normalizer, report)

    def _layer(self, s: int, t: int, student: Outputs, teacher: Outputs, batch: AnswerBatch, rows: Rows) -> Tensor:
        """Loss of one pair of layers summed over answer rows, by relation."""
        ours, theirs = student.attention[s], teacher.attention[t]
        self.check_attention(ours.shape, theirs.shape, (f"student layer {s}", f"teacher layer {t}"))
        text = batch.segment_ids.masked_fill(~batch.text_mask.bool(), NOBODY)  # [B, T]
        real = rows.lay_out(torch.ones_like(batch.rows, dtype=torch.bool))  # [B, M]
        answers = rows.segment.masked_fill(~real, NOBODY)
        sums = []
        for kind in self.relations:
            with torch.no_grad():
                wanted, their_keys = vectors(kind, theirs, teacher, batch, rows)
            found, our_keys = vectors(kind, ours, student, batch, rows)
            keys, pieces = answers if kind == "qq" else text, []  # [B, S]
            # More rows than a chunk are computed again in backward, so that the relations of all never stand together.
            again = torch.is_grad_enabled() and found.shape[1] > self.chunk
            for own, other, segment in zip(
                *(x.split(self.chunk, 1) for x in (found, wanted, rows.segment)), strict=True
            ):
                arguments = (own, our_keys, other, their_keys, keys[:, None, :] == segment[:, :, None], self.heads)
                if again:
                    pieces.append(checkpoint(divergence, *arguments, use_reentrant=False, preserve_rng_state=False))
                else:
                    pieces.append(divergence(*arguments))
            sums.append(rows.pick(torch.cat(pieces, 1)).sum())
        return torch.stack(sums)

    def check_attention(
        self, student: AttentionShape, teacher: AttentionShape, at: tuple[str, str] = ("student", "teacher")
    ) -> None:
        widths = {}
        for side, shape in zip(at, (student, teacher), strict=True):
            widths[f"{side} queries"] = shape.heads * shape.width
            widths[f"{side} keys"] = shape.shared * shape.width
            widths[f"{side} values"] = shape.shared * shape.value_width
        if any(width % self.heads for width in widths.values()):
            common = math.gcd(*widths.values())
            allowed = [n for n in range(1, common + 1) if common % n == 0]
            raise ConfigError(
                f"attention_relations: heads={self.heads} does not divide all of "
                f"{', '.join(f'{name} ({width})' for name, width in widths.items())}; expected one of: "
                f"{', '.join(map(str, allowed))}."
            )


def vectors(kind: str, layer: LayerAttention, side: Outputs, batch: AnswerBatch, rows: Rows) -> tuple[Tensor, Tensor]:
    """What a relation compares, all heads put together: answer rows [B, M, W], and the tokens they run over [B, S, W]
    (the answer rows themselves for qq, the text for kk and vv)."""
    at = (batch.rows, batch.positions)
    unrotated = _unrotate(side)
    if kind == "qq":
        laid = rows.lay_out(unrotated(layer.query, *at)).flatten(2)  # [B, M, H * d]
        return laid, laid
    batch_size, length = batch.text_mask.shape
    states = (layer.key if kind == "kk" else layer.value)[:, :, -length:].transpose(1, 2)  # [B, T, Hkv, d]
    if kind == "kk":
        everywhere = torch.ones_like(batch.text_mask, dtype=torch.bool).nonzero(as_tuple=True)
        states = unrotated(states.flatten(0, 1), *everywhere).unflatten(0, (batch_size, length))
    return rows.lay_out(states[at]).flatten(2), states.flatten(2)


def divergence(
    left: Tensor, right: Tensor, their_left: Tensor, their_right: Tensor, seen: Tensor, heads: int
) -> Tensor:
    """KL(teacher row || student row), mean over relation heads, [B, M]; arguments of both sides as of `relations`."""
    with torch.no_grad():
        wanted = relations(their_left, their_right, seen, heads)  # [B, R, M, S]
    found = relations(left, right, seen, heads)
    return (wanted.exp() * (wanted - found)).sum(-1).mean(1)


def relations(left: Tensor, right: Tensor, seen: Tensor, heads: int) -> Tensor:
    """log softmax(left right^T / sqrt(d_r)) over what each row sees, [B, R, M, S], fp32 or wider.

    Args:
        left: [B, M, W]; right: [B, S, W]; seen: [B, M, S] bool; heads: R, each d_r = W / R wide.
    """
    wide = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        a, b = (x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (left, right))  # [B, R, M or S, d_r]
        scores = a @ b.transpose(2, 3) * a.shape[-1] ** -0.5
        return scores.masked_fill(~seen[:, None], HIDDEN).log_softmax(-1)


def _unrotate(side: Outputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (states [n, H, d], rows [n], positions [n]) -> states as they were before the rotary embedding."""

    def unrotate(states: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        if side.move_queries is None or side.text_positions is None:
            return states
        return side.move_queries(states, -side.text_positions[rows, positions])

    return unrotate
