"""What an objective is, what it reads, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from mmkd.models.attention_capture import AttentionShape, LayerAttention


@dataclass(frozen=True)
class Needs:
    """What the two sides must deliver beyond the hidden states of the answer.

    Attributes:
        teacher: True where a teacher has to read the answers.
        student_attention, teacher_attention: layers of that side's decoder whose q, k, v are captured.
        student_hidden, teacher_hidden: layers of that side's decoder whose output is captured.
        teacher_head: True where gradients pass through the teacher's final norm and head, which must be frozen.
        own_tokens: True where the teacher reads answers by its own template and tokenizer.
        tower: True where the features of both vision towers are wanted, which a teacher gives without reading a word.
        turned: True where captured queries or keys are moved to other positions.
    """

    teacher: bool = False
    student_attention: tuple[int, ...] = ()
    teacher_attention: tuple[int, ...] = ()
    student_hidden: tuple[int, ...] = ()
    teacher_hidden: tuple[int, ...] = ()
    teacher_head: bool = False
    own_tokens: bool = False
    tower: bool = False
    turned: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What serves both."""
        return Needs(
            self.teacher or other.teacher,
            _layers(self.student_attention, other.student_attention),
            _layers(self.teacher_attention, other.teacher_attention),
            _layers(self.student_hidden, other.student_hidden),
            _layers(self.teacher_hidden, other.teacher_hidden),
            self.teacher_head or other.teacher_head,
            self.own_tokens or other.own_tokens,
            self.tower or other.tower,
            self.turned or other.turned,
        )


def _layers(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*first, *second}))


@dataclass
class Outputs:
    """One side, student or teacher.

    Attributes:
        answer_hidden: [N, D] hidden state at the position that predicts each answer token.
        head: [n, D] -> [n, V]; calls the language-model head as a module, with its soft cap and scale.
        attention: captured layers.
        image_slots: [B, P] bool, prefix slots that hold image tokens (V on the full side, C on the compressed side).
        sink_slots: [B, P] bool, prefix slots that hold a sink which text with an image can see.
        slot_segments: [B, P] packed sample of each prefix slot; the sink belongs to all.
        vocabulary: token ids below this are real, the rest of V is padding; None takes all of V.
        query_positions: [N] position at which each query really stands, or None where both sides stand alike.
        move_queries: (query [N, H, d], shift [N]) -> query moved on by so many positions, or None where queries do not
            depend on the position (no rotary embedding).
        text_positions: [B, T] position at which each text token really stands, or None.
        hidden: [N, D] output of each captured decoder layer at the answer rows, before the final norm.
        final_norm: [n, D] -> [n, D], the decoder's final norm, which stands before the head.
        tower: [M, C, rows, cols] what the vision tower hands to the projector, of all tiles of the batch, blank ones
            that stand in for no image among them.
        head_weight: [V, D] where `head` is the product with it and nothing else, and it is whole on this rank.
        compressed: whether the image slots are compression tokens.
    """

    answer_hidden: Tensor
    head: Callable[[Tensor], Tensor]
    attention: dict[int, LayerAttention]
    image_slots: Tensor
    sink_slots: Tensor
    slot_segments: Tensor
    vocabulary: int | None = None
    query_positions: Tensor | None = None
    move_queries: Callable[[Tensor, Tensor], Tensor] | None = None
    text_positions: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    final_norm: Callable[[Tensor], Tensor] | None = None
    tower: Tensor | None = None
    head_weight: Tensor | None = None
    compressed: bool = False


@dataclass
class Spans:
    """Where both sides have read the same bytes of an answer, each in its own tokens (`mmkd.data.byte_spans`).

    Attributes:
        student, teacher: [S] index into each side's answer tokens; the first token of each span.
        matched: [S] bool, both sides cut the span as one and the same token.
        shared: [2, m] ids, student's and teacher's, of the tokens that both have.
    """

    student: Tensor
    teacher: Tensor
    matched: Tensor
    shared: Tensor


@dataclass
class Pairs:
    """Which answer tokens of a micro batch belong to which preference pair.

    Attributes:
        preference: [N] n at tokens of the chosen answer of pair n, counted from 1, -n at those of its rejected answer,
            0 at others.
        count: pairs of the micro batch.
        normalizer: pairs of the optimiser step over all ranks, scaled as `AnswerBatch.normalizer` is.
    """

    preference: Tensor
    count: int
    normalizer: Tensor | float


@dataclass
class AnswerBatch:
    """The N answer tokens of a micro batch.

    Attributes:
        answer_ids: [N] next-token targets.
        rows: [N] batch row of each answer query.
        positions: [N] index in the text (0..T-1) of each answer query; it predicts token positions + 1.
        text_mask: [B, T] real text tokens.
        segment_ids: [B, T] packed sample of each text token.
        normalizer: answer tokens of the optimiser step over all ranks, scaled so that the sum over a micro batch
            divided by it, averaged over ranks and accumulation as DeepSpeed does, is the mean over all those tokens.
        head_calls: how often each head is called for this batch, None for as often as it needs. Under ZeRO-3 a call is
            a collective: all ranks must take the same number, the largest `len(chunked.split_sizes(N, chunk))`.
        spans: how the answers meet those of a teacher that reads tokens of its own.
        weights: [N] by which token losses are multiplied before they are summed, or None.
        images: [M] bool, tiles of real images.
        image_normalizer: as `normalizer`, of those tiles.
        pairs: where the batch holds preference pairs; rejected answers are then none of those that `normalizer` counts.
    """

    answer_ids: Tensor
    rows: Tensor
    positions: Tensor
    text_mask: Tensor
    segment_ids: Tensor
    normalizer: Tensor | float
    head_calls: int | None = None
    spans: Spans | None = None
    weights: Tensor | None = None
    images: Tensor | None = None
    image_normalizer: Tensor | float = 1.0
    pairs: Pairs | None = None


class Ratio(NamedTuple):
    """A sum and what it is to be divided by, so that ratios stay exact when ranks and micro batches are added up."""

    total: Tensor
    count: Tensor

    def plus(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """The ratio; nan where nothing was counted. Waits for the device."""
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


@dataclass
class Losses:
    """What an objective gives back.

    Attributes:
        loss: scalar, already divided by the batch's normalizer, tied to the student's graph even where N = 0.
        report: detached sums and counts by name.
    """

    loss: Tensor
    report: dict[str, Ratio] = field(default_factory=dict)


class Objective(nn.Module):
    """A training signal. Subclasses are registered by name; keyword arguments of `__init__` are its options.

    Attributes:
        teacher: True where it reads the teacher's outputs on the student's tokens.
        own_tokens: True where it reads them on the teacher's own tokens.
        sparse_teacher: True where some tokens of the teacher's distribution, from a cache, are enough.
        teacher_tower: True where it compares vision towers; `make_heads` is then given their widths.
        hidden_teacher: True where hidden states of the teacher's layers, from a cache, are enough.
        reads_pairs: True where it reads preference pairs: every record of its stage then has to be one.
    """

    name: str = ""  # set by @register
    teacher: bool = False
    own_tokens: bool = False
    sparse_teacher: bool = False
    hidden_teacher: bool = False
    teacher_tower: bool = False
    reads_pairs: bool = False

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        """What must be delivered, given the number of decoder layers of each side. Raises ConfigError."""
        return Needs()

    def check_attention(
        self, student: AttentionShape, teacher: AttentionShape, at: tuple[str, str] = ("student", "teacher")
    ) -> None:
        """Refuse layers whose attention cannot be compared; asked before anything is loaded where config.json tells
        what they are, and of every pair of layers that is captured. `at` names them. Raises ConfigError.
        """

    def make_heads(self, student_width: int, teacher_width: int | None) -> None:
        """Create the trainable modules that stand between the sides' hidden widths. Called once, after `needs`.

        They are trained and checkpointed with the student and never exported.
        """

    @property
    def asks_teacher(self) -> bool:
        """Whether it learns from a teacher in any way."""
        return self.teacher or self.own_tokens or self.teacher_tower

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        raise NotImplementedError

    def step_finished(self, progress: float) -> None:
        """Told once after each optimiser step, on every rank, what share of the stage's steps is done.

        For objectives that adapt. What they learn so is a buffer: checkpoints keep it.
        """
