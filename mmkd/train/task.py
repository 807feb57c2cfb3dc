"""One training step's mathematics: student, teacher and objectives behind one `forward(batch) -> loss`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.voco import CompressionTokens
from mmkd.objectives import (
    AnswerBatch,
    Needs,
    Objective,
    Outputs,
    Ratio,
    SparseTargets,
    TokenLoss,
    token_losses,
    without_rejected,
)
from mmkd.teachers.live import Teacher
from mmkd.teachers.reading import (
    answer_batch,
    prefixes,
    product_weight,
    read_outputs,
    require_turnable,
    tower_map,
    vision,
)
from mmkd.train.learned import LearningTask


class _WholeHead(nn.Module):
    """Runs what calls the head. ZeRO-3 gathers the weights of a module around its forward and around its backward, and
    those of the head are made known to it as this module's too: so they are gathered once each way, not once a chunk,
    and the calls inside find them there."""

    def forward(self, hidden: Tensor, *, run: Callable[[Tensor], Tensor]) -> Tensor:
        return run(hidden)  # `run` goes by its name because ZeRO-3 asks for tensors at all other places


class DistillTask(LearningTask):
    """Owns what is trained: the student and the heads of its objectives. The teacher is only referred to, so that it
    reaches neither optimiser nor checkpoint.

    Args:
        student: the model being trained.
        objectives: (objective, weight) pairs.
        teacher: None where no objective needs one.
        vocabulary: token ids below this are real; None takes the whole width of the heads.
        shared_ids: [2, m] ids of student and teacher that are one token, where the teacher reads tokens of its own.
    """

    shared_ids: Tensor | None

    def __init__(
        self,
        student: MmkdForConditionalGeneration,
        objectives: list[tuple[Objective, float]],
        teacher: Teacher | None = None,
        vocabulary: int | None = None,
        shared_ids: Tensor | None = None,
    ):
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleList(objective for objective, _ in objectives)
        self.weights = [weight for _, weight in objectives]
        self.whole_head = _WholeHead()
        object.__setattr__(self, "teacher", teacher)  # not a submodule
        self.vocabulary = vocabulary
        self.register_buffer("shared_ids", shared_ids, persistent=False)
        text = student.config.text_config
        layers, width = (teacher.layers(student), teacher.width(student)) if teacher is not None else (None, None)
        self.needs = Needs()
        for objective, _ in objectives:
            self.needs = self.needs | objective.needs(text.num_hidden_layers, layers)
            if objective.teacher_tower:
                tower = teacher.tower_width() if teacher is not None else None
                objective.make_heads(student.config.vision_config.hidden_size, tower)
            else:
                objective.make_heads(text.hidden_size, width)
        if self.needs.turned:
            require_turnable(student, self.needs.student_attention, "student")
        if teacher is not None:
            teacher.check(self.needs)
        self.report: dict[str, Ratio] = {}

    def train(self, mode: bool = True) -> DistillTask:
        """The tower stays in eval mode, trained or not: batch norms would take statistics of a micro batch of one rank,
        blank images among them, and a frozen tower would differ from its cached features."""
        super().train(mode)
        self.student.vision_tower.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Loss of one micro batch in the text-only layout of `mmkd.data.collate`.

        Beyond the collator's keys the batch carries `reads`, the token counts to read with (None is full vision),
        `normalizer` (see AnswerBatch), with preference pairs `pair_normalizer` (see Pairs), and `on_policy` where its
        answers are the student's own: then only objectives that read the teacher on them count, reported as
        `on_policy/NAME`. The report of sums and counts is left in `self.report`.
        """
        answers = answer_batch(batch, self.shared_ids)
        features, tower = vision(self.student, batch)
        needs = self.needs
        teacher = None
        if self.teacher is not None and (needs.teacher or needs.tower):
            teacher = self.teacher.outputs(self.student, batch, answers, needs)
        self.report = {}
        losses = []
        for tokens, prefix in prefixes(self.student, features, batch, batch["reads"]):
            outputs = read_outputs(self.student, prefix, batch, answers, needs.student_attention, needs.student_hidden)
            outputs.vocabulary, outputs.compressed = self.vocabulary, tokens is not None
            outputs.tower = tower_map(self.student, tower) if needs.tower else None
            places = ("on_policy/",) if batch.get("on_policy") else ("", "full/" if tokens is None else f"k{tokens}/")
            losses.append(self._with_head(outputs, teacher, answers, places))
        loss = torch.stack(losses).mean()
        if all(tokens is None for tokens in batch["reads"]) and self.student.voco is not None:
            loss = loss + self._unread(self.student.voco)
        return loss

    def readable_ids(self) -> int | None:
        """Token ids below this are real for the student, and for a teacher that reads its tokens; None takes all."""
        sides = [self.vocabulary, self.teacher.vocabulary if self.teacher is not None else None]
        return min((size for size in sides if size is not None), default=None)

    def step_finished(self, progress: float) -> None:
        """Call after each optimiser step, on every rank, with the share of the stage's steps that is done."""
        for objective in self.objectives:
            objective.step_finished(progress)

    @staticmethod
    def _unread(voco: CompressionTokens) -> Tensor:
        """Zero, with a gradient of zero for the compression tokens that a step of full vision leaves alone: a parameter
        that gets none keeps the gradient of the step before under ZeRO-3, and is moved by it again."""
        total = voco(voco.tokens).sum()
        bias = voco.mass_bias(voco.tokens)
        return 0.0 * (total if bias is None else total + bias.sum())

    def _with_head(
        self,
        student: Outputs,
        teacher: Outputs | SparseTargets | None,
        answers: AnswerBatch,
        places: tuple[str, ...],
    ) -> Tensor:
        """As `_loss`, with the head's weights whole all the while, so that gradients may be made ahead."""
        cut = [p for p in self.student.get_output_embeddings().parameters() if hasattr(p, "ds_id")]
        if not cut:
            return self._loss(student, teacher, answers, places)
        import deepspeed

        for parameter in cut:
            deepspeed.zero.register_external_parameter(self.whole_head, parameter)

        def run(hidden: Tensor) -> Tensor:
            whole = replace(student, answer_hidden=hidden, head_weight=product_weight(self.student))
            return self._loss(whole, teacher, answers, places)

        return self.whole_head(student.answer_hidden, run=run)

    def _loss(
        self,
        student: Outputs,
        teacher: Outputs | SparseTargets | None,
        answers: AnswerBatch,
        places: tuple[str, ...],
    ) -> Tensor:
        """The weighted sum of the objectives; each figure is reported at every one of `places`."""
        pairs = list(zip(self.objectives, self.weights, strict=True))
        if places == ("on_policy/",):
            pairs = [(objective, weight) for objective, weight in pairs if objective.teacher]
        learned = without_rejected(student, teacher, answers)  # all that token losses see
        results = []
        by_token = [(o, w) for o, w in pairs if isinstance(o, TokenLoss) and o.kernel == "chunked"]
        if by_token:
            results.append((token_losses(by_token, *learned), 1.0))
        # What a cached teacher lacks was refused before anything was loaded.
        apart = [(o, w) for o, w in pairs if not isinstance(o, TokenLoss) or o.kernel != "chunked"]
        whole = (student, teacher, answers)
        results += [(o(*(learned if isinstance(o, TokenLoss) else whole)), w) for o, w in apart]
        for result, _ in results:
            for name, ratio in result.report.items():
                for key in (place + name for place in places):
                    self.report[key] = self.report[key].plus(ratio) if key in self.report else ratio
        return torch.stack([result.loss * weight for result, weight in results]).sum()
