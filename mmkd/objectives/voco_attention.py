"""Attention distillation for compressed images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmkd.errors import ConfigError
from mmkd.models.attention_capture import AttentionShape, LayerAttention
from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import choice, count, number
from mmkd.objectives.image_attention import Rows, image_attention, rows_with_image
from mmkd.objectives.layer_pairs import layer_choice, layer_pairs
from mmkd.objectives.registry import register


@register("voco_attention")
class VocoAttention(Objective):
    """Match what attention reads from the image: over V in the teacher, over C in the student.

    Attention over a set A of keys is, for one query and head, o_A (softmax-weighted value over A alone) and lse_A
    (log-sum-exp of its scores), and sets merge exactly. If the compression tokens C give the (o, lse) that the vision
    tokens V give, the layer's output is the same. With T the sink and the text up to the query, and w_A =
    sigmoid(lse_A - lse_T):

        L = mean over layers, heads  |w_V o_V - w_C o_C|^2 / E  +  beta smoothL1(mass_V - mass_C)

    summed over answer rows, where E is the mean |v|^2 over the image's vision tokens and heads in the teacher's layer.
    An error so counts by what it changes in the layer's output. (Divided by its own |w_V o_V|^2, a head and row that
    reads nothing from the image counts most: with trained weights such rows were 10^4 times the others.) The teacher
    is detached. Rows without an image contribute 0. The idea is close to KV cache compaction by attention matching
    (arXiv 2602.16284), here as a training signal.

    Args:
        layers: "all", "every n" (counted back from the last), a list of student layers (negative from the end), each
            matched with the teacher's layer at the same relative depth, or a list of [student, teacher] pairs.
        queries: "own" compares each side at its own queries; the student's queries and text keys get gradients too.
            "teacher" takes the teacher's queries and its lse_T on both sides; gradients reach the K,V of C only.
        beta: weight of the mass term; 0 leaves it out.
        mass: what the mass term compares: "share", w_A, or "score", lse_A - lse_T. k tokens cannot carry the mass of n
            for every query; "share" forgives that where the image has no weight.
        gram: weight of a spread term, -log det of the Gram matrix of C's keys, against k tokens that learn the same.
            There is none where the student reads V.
        chunk: rows of a sample computed at once.
    """

    teacher = True

    def __init__(
        self,
        layers: Any = "all",
        queries: str = "own",
        beta: float = 0.1,
        mass: str = "share",
        gram: float = 0.0,
        chunk: int = 256,
    ):
        super().__init__()
        self.layers = layer_choice(self.name, layers)
        self.queries = choice(self.name, "queries", queries, ("own", "teacher"))
        self.mass = choice(self.name, "mass", mass, ("share", "score"))
        self.beta = number(self.name, "beta", beta, least=0)
        self.gram = number(self.name, "gram", gram, least=0)
        self.chunk = count(self.name, "chunk", chunk)
        self.pairs: list[tuple[int, int]] = []

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        # Without a teacher the pairs do not matter: the caller refuses the run.
        self.pairs = layer_pairs(self.name, self.layers, student_layers, teacher_layers or student_layers)
        students, teachers = zip(*self.pairs, strict=True)
        layers = tuple(sorted(set(students))), tuple(sorted(set(teachers)))
        return Needs(True, *layers, turned=self.queries == "teacher")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if teacher is None or not self.pairs:
            raise ValueError("voco_attention: call needs() first, and give it the teacher's outputs.")
        rows = rows_with_image(batch, [student, teacher])
        # Tied to the student's graph even where no row has an image: every rank's backward meets the same modules.
        total, report = student.answer_hidden.sum().float() * 0.0, {}
        for s, t in self.pairs:
            theirs, ours = teacher.attention[t], student.attention[s]
            self.check_attention(ours.shape, theirs.shape, (f"student layer {s}", f"teacher layer {t}"))
            if len(rows.index):
                loss, numbers = self._layer(ours, theirs, student, teacher, rows)
                total = total + loss / len(self.pairs)
            else:
                numbers = total.new_zeros(5)
            _add(report, s, numbers.detach(), len(rows.index))
        return Losses(total / batch.normalizer, report)

    def _layer(
        self, ours: LayerAttention, theirs: LayerAttention, student: Outputs, teacher: Outputs, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Loss of one layer summed over rows, and the sums to report: loss, w_V, w_C, |w_V o_V - w_C o_C|^2 and
        |w_V o_V|^2."""
        image, sink = rows.sees(teacher)
        with torch.no_grad():
            query = rows.lay_out(theirs.query)
            wanted, image_lse, rest_lse = image_attention(query, theirs, image, sink, rows.text, self.chunk)
            energy = rows.pick(_energy(theirs, image))  # [R]
        if self.queries == "teacher":  # same query and same text on both sides: only the image differs
            query, known = rows.lay_out(_moved(theirs.query.detach(), teacher, student)), rest_lse
        else:
            query, known = rows.lay_out(ours.query), None
        found, our_image_lse, our_rest_lse = image_attention(
            query, ours, *rows.sees(student), rows.text, self.chunk, rest_lse=known
        )

        odds, our_odds = (rows.pick(a - b) for a, b in ((image_lse, rest_lse), (our_image_lse, our_rest_lse)))  # [R, H]
        wanted, found = rows.pick(wanted), rows.pick(found)  # [R, H, dv]
        error = (wanted - found).square().sum(-1)  # [R, H]
        share, our_share = odds.sigmoid(), our_odds.sigmoid()
        terms = error / energy[:, None]
        if self.beta:
            compared = (our_odds, odds) if self.mass == "score" else (our_share, share)
            terms = terms + self.beta * functional.smooth_l1_loss(*compared, reduction="none")
        loss = terms.mean(-1).sum()
        if self.gram and student.compressed:  # with full vision there is nothing to spread
            loss = loss + self.gram * _spread(ours, student, rows)
        sums = (x.mean(-1).sum() for x in (share, our_share, error, wanted.square().sum(-1)))
        return loss, torch.stack([loss, *sums])

    def check_attention(
        self, student: AttentionShape, teacher: AttentionShape, at: tuple[str, str] = ("student", "teacher")
    ) -> None:
        if student._replace(shared=0) != teacher._replace(shared=0):
            found = ", ".join(
                f"{name} has {shape.heads} heads of width {shape.width} (values {shape.value_width})"
                for name, shape in zip(at, (student, teacher), strict=True)
            )
            raise ConfigError(
                f"voco_attention compares head by head: {found}. Use a teacher of the student's family or "
                "teacher.kind: shared, or drop voco_attention and keep forward_kl."
            )


def _moved(query: Tensor, teacher: Outputs, student: Outputs) -> Tensor:
    """The teacher's queries [N, H, d] as they would be at the position where the student's stand."""
    if teacher.move_queries is None or teacher.query_positions is None or student.query_positions is None:
        return query
    return teacher.move_queries(query, student.query_positions - teacher.query_positions)


def _energy(layer: LayerAttention, image: Tensor) -> Tensor:
    """Mean |v|^2 over heads and the image slots that each row sees, [B, M]. image: [B, M, P]."""
    value = layer.value[:, :, : image.shape[-1]].to(torch.promote_types(layer.value.dtype, torch.float32))
    squares = value.square().sum(-1).mean(1)  # [B, P]
    seen = image.to(squares.dtype)
    return (seen * squares[:, None]).sum(-1) / seen.sum(-1).clamp_min(1)


def _spread(layer: LayerAttention, side: Outputs, rows: Rows) -> Tensor:
    """-log det of the Gram matrix of the image slots' unit keys, per slot, mean over heads, summed over rows."""
    slots = side.image_slots.shape[1]
    wide = torch.promote_types(layer.key.dtype, torch.float32)
    with torch.autocast(layer.key.device.type, enabled=False):
        keys = functional.normalize(layer.key[:, :, :slots].to(wide), dim=-1)  # [B, Hkv, P, d]
        together = side.slot_segments[:, :, None] == side.slot_segments[:, None, :]
        together = together & side.image_slots[:, :, None] & side.image_slots[:, None, :]  # [B, P, P]
        gram = (keys @ keys.transpose(2, 3)) * together[:, None]
        # Other slots become rows of the identity, which add nothing; the ridge keeps equal keys finite.
        other = torch.diag_embed((~side.image_slots).to(wide))[:, None]
        ridge = 1e-3 * torch.eye(slots, dtype=wide, device=gram.device)
        spread = -torch.linalg.slogdet(gram + other + ridge).logabsdet.mean(1)  # [B]
    spread = spread / side.image_slots.sum(1).clamp(min=1)
    return spread[rows.row].sum()


def _add(report: dict[str, Ratio], layer: int, numbers: Tensor, count: int) -> None:
    loss, share, our_share, error, wanted = numbers
    counted = numbers.new_tensor(count)
    for name, ratio in {
        "attention": Ratio(loss, counted),
        "attention_error": Ratio(error, wanted),  # of all that the layer reads from the image
        "image_share_teacher": Ratio(share, counted),
        "image_share_student": Ratio(our_share, counted),
    }.items():
        report[f"{name}/layer_{layer}"] = ratio
        report[name] = report[name].plus(ratio) if name in report else ratio
