"""Teachers that run beside the student: another model, or the student itself with full vision; and which one a config
asks for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from mmkd.compose import load
from mmkd.config.schema import TeacherSection
from mmkd.errors import ConfigError
from mmkd.lora import adapters_off, without_adapter
from mmkd.models.attention_capture import capture_name
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.objectives import AnswerBatch, Needs, Outputs, SparseTargets
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.calibration import read_calibration
from mmkd.teachers.checks import NO_GRADIENTS_THROUGH, check_section
from mmkd.teachers.quantized import load_quantized
from mmkd.teachers.reading import (
    answer_batch,
    evaluating,
    prefixes,
    read_outputs,
    require_turnable,
    tower_map,
    vision,
)
from mmkd.teachers.sharded import WholeHead, cut_up
from mmkd.teachers.tokenizers import vocabulary_size


class Teacher(Protocol):
    """Answers with full vision, without gradients, never part of what is trained or saved.

    Attributes:
        vocabulary: ids below this are tokens for it; None where those are the student's.
    """

    vocabulary: int | None

    def layers(self, student: MmkdForConditionalGeneration) -> int | None:
        """Layers of its decoder; None where it has none to show, as for `width`."""

    def width(self, student: MmkdForConditionalGeneration) -> int | None: ...

    def tower_width(self) -> int | None:
        """Channels of its vision tower; None where it has none of its own."""

    def check(self, needs: Needs) -> None:
        """Raises ConfigError for needs that this kind of teacher cannot serve."""

    def outputs(
        self, student: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
    ) -> Outputs | SparseTargets: ...


OF_STUDENTS_TEXT = ("loss_weights", "preference")  # by the student's tokens: no index into a teacher's own


class LiveTeacher:
    """Another model, whole on every rank or cut up over them.

    Args:
        model: folder or hub id of a composed model.
        dtype: of its weights.
        attention: attention implementation, as the student's.
        quantize: nf4 or int8, of its decoder's layers; see `quantized`.
        zero3: cut up over the ranks, with these settings; see `sharded`.
    """

    def __init__(
        self,
        model: str,
        dtype: torch.dtype,
        attention: str,
        device: torch.device,
        quantize: str | None = None,
        zero3: dict[str, Any] | None = None,
    ):
        composed = load(model, dtype) if quantize is None else load_quantized(model, quantize, dtype, device)
        self.model = composed.model.eval().requires_grad_(False)
        self.model.set_attn_implementation(capture_name(attention))
        self.zero3, self.read = zero3, partial(_full_vision, self.model)
        if zero3 is not None:
            self.head = WholeHead(self.model.get_output_embeddings())
            self.read = cut_up(self.model, _full_vision, dtype, device, zero3)
        elif quantize is None:
            self.model.to(device)
        self.processor = composed.processor
        self.vocabulary: int | None = vocabulary_size(composed.processor.tokenizer)

    def layers(self, student: MmkdForConditionalGeneration) -> int:
        return self.model.config.text_config.num_hidden_layers

    def width(self, student: MmkdForConditionalGeneration) -> int:
        return self.model.config.text_config.hidden_size

    def tower_width(self) -> int:
        return self.model.config.vision_config.hidden_size

    def check(self, needs: Needs) -> None:
        if self.zero3 is not None and needs.teacher_head:
            raise ConfigError(NO_GRADIENTS_THROUGH)
        if needs.turned:
            require_turnable(self.model, needs.teacher_attention, "teacher")

    @torch.no_grad()
    def outputs(
        self, student: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
    ) -> Outputs:
        batch = batch | batch.get("teacher", {})
        if needs.own_tokens:
            answers = answer_batch({name: value for name, value in batch.items() if name not in OF_STUDENTS_TEXT})
        else:
            self._require_rows_for(batch["input_ids"])
        outputs = self.read(batch, answers, needs)
        outputs.vocabulary = self.vocabulary
        if self.zero3 is not None and needs.teacher:
            products = self.head.gathered()
            outputs.head = lambda hidden: self.model.scaled(products(hidden))
        return outputs

    def _require_rows_for(self, ids: torch.Tensor) -> None:
        """Raises ConfigError for ids beyond the table: of a chat template, or of an added token that a row holds."""
        rows, highest = self.model.get_input_embeddings().num_embeddings, int(ids.max())
        if highest >= rows:
            raise ConfigError(
                f"the student's chats hold id {highest}, an added token of its own, and the teacher's embedding has "
                f"{rows} rows: it cannot read them. Choose a student.template of tokens that both have, e.g. plain or "
                "qa; or leave such tokens out of the data."
            )


class SharedTeacher:
    """The student's own weights with full vision, its adapters off: what compression should preserve."""

    vocabulary: int | None = None

    def layers(self, student: MmkdForConditionalGeneration) -> int:
        return student.config.text_config.num_hidden_layers

    def width(self, student: MmkdForConditionalGeneration) -> int:
        return student.config.text_config.hidden_size

    def tower_width(self) -> None:
        return None

    def check(self, needs: Needs) -> None:
        if needs.teacher_head:
            raise ConfigError(
                "teacher.kind shared has no frozen norm and head of its own, and ofa_logits reads the student through "
                "them; use teacher.kind live, or hidden_states in the place of ofa_logits."
            )
        if needs.own_tokens:
            raise ConfigError(
                "teacher.kind shared reads the student's tokens, and uld is for a teacher that reads others; use "
                "forward_kl, or teacher.kind live."
            )

    @torch.no_grad()
    def outputs(
        self, student: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
    ) -> Outputs:
        with evaluating(student), adapters_off(student.language_model):
            outputs = _full_vision(student, batch, answers, needs)
        head = without_adapter(student.get_output_embeddings())  # it is called later, when adapters are on again
        outputs.head = lambda hidden: student.scaled(head(hidden))
        return outputs


def _full_vision(
    model: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
) -> Outputs:
    features, tower = vision(model, batch)
    if needs.tower and not needs.teacher:  # nothing of the text was asked for
        none = batch["attention_mask"].new_zeros(len(batch["attention_mask"]), 0)
        states = tower.new_zeros(0, model.config.text_config.hidden_size)
        outputs = Outputs(states, model.head, {}, none.bool(), none.bool(), none)
        outputs.tower = tower_map(model, tower)
        return outputs
    [(_, prefix)] = prefixes(model, features, batch, [None])
    outputs = read_outputs(model, prefix, batch, answers, needs.teacher_attention, needs.teacher_hidden)
    outputs.tower = tower_map(model, tower) if needs.tower else None
    return outputs


def build_teacher(
    section: TeacherSection | None,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    zero_settings: dict[str, Any] | None = None,
) -> Teacher | None:
    """The teacher of a config. Raises ConfigError for a section that contradicts itself, a missing model or store.

    Args:
        zero_settings: the run's own of DeepSpeed's zero_optimization, for a teacher that is cut up.
    """
    if section is None:
        return None
    check_section(section)
    if section.kind == "shared":
        return SharedTeacher()
    if section.kind == "cached":
        folder = Path(str(section.store))
        return CachedTeacher(folder, read_calibration(folder).c if section.validation else None)
    zero3 = (zero_settings or {}) if section.zero3 else None
    return LiveTeacher(str(section.model), dtype, attention, device, section.quantize, zero3)
