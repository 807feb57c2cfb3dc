"""A teacher that was asked beforehand: its answers come with the batch, and it is never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmkd.config.schema import TeacherSection
from mmkd.errors import ConfigError
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.objectives import AnswerBatch, Needs, SparseTargets
from mmkd.teachers.identity import Manifest, teacher_identity, text_identity
from mmkd.teachers.logit_store import LogitStore, read_manifest, require_same
from mmkd.teachers.targets import given_settings


class CachedTeacher:
    """What `mmkd cache` kept of a teacher.

    Args:
        store: its filled folder. The loader reads it (`Collator.teacher_rows`); batches carry what it holds.

    Raises: ConfigError where the store is not filled.
    """

    def __init__(self, store: str | Path):
        self.store = LogitStore(store)

    def layers(self, student: MmkdForConditionalGeneration) -> None:
        return None

    def width(self, student: MmkdForConditionalGeneration) -> None:
        return None

    def check(self, needs: Needs) -> None:
        pass  # require_servable did, before anything was loaded

    def outputs(
        self, student: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
    ) -> SparseTargets:
        rows = batch["teacher_rows"]
        if len(rows["best"]) != len(answers.answer_ids):
            raise ValueError(f"{len(rows['best'])} rows of a cached teacher for {len(answers.answer_ids)} answers.")
        log_probs, weights, tail = rows["log_probs"], rows.get("weights"), rows.get("tail")
        if tail is not None:  # what rounding to the dtype on disk moved: k + 1 buckets that sum to 1 again
            total = torch.cat([log_probs, tail[:, None]], 1).logsumexp(1)  # [N]
            log_probs, tail = log_probs - total[:, None], tail - total
            weights = log_probs.exp()
        return SparseTargets(
            rows["ids"], log_probs, weights, tail, rows["answers"], rows["best"], self.store.manifest.vocabulary
        )


def require_same_text(section: TeacherSection | None, processor: MmkdProcessor) -> None:
    """Raises ConfigError where a cached teacher was asked about token ids of another tokenizer or template."""
    if section is not None and section.kind == "cached" and section.store is not None:
        folder = Path(section.store)
        require_same(read_manifest(folder), folder, text_identity(processor))


def require_same_teacher(section: TeacherSection, folder: Path) -> Manifest:
    """The manifest of a store. Raises ConfigError where it is of another teacher or other options than `section`
    names; what that leaves out is not compared."""
    manifest = read_manifest(folder)
    here: dict[str, Any] = given_settings(section)
    if section.quantize is not None:
        here["quantize"] = section.quantize
    if section.model is not None:
        try:
            here |= teacher_identity(section.model)
        except ConfigError as error:
            raise ConfigError(
                f"{error} Without teacher.model a store is not compared with its teacher, which then need not be on "
                "this machine."
            ) from error
    require_same(manifest, folder, here)
    return manifest
