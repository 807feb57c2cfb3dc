"""A teacher that was asked beforehand: its answers come with the batch, and it is never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmkd.config.schema import TeacherSection
from mmkd.data.teacher_rows import NOWHERE, hidden_of
from mmkd.errors import ConfigError
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.objectives import AnswerBatch, Needs, SparseTargets
from mmkd.teachers.calibration import recalibrated
from mmkd.teachers.identity import Manifest, served_identity, teacher_identity, text_identity
from mmkd.teachers.logit_store import LogitStore, read_manifest, require_same
from mmkd.teachers.targets import TargetSettings, given_settings


class CachedTeacher:
    """What `mmkd cache` kept of a teacher.

    Args:
        store: its filled folder. The loader reads it (`Collator.teacher_rows`); batches carry what it holds.
        c: see `calibration.recalibrated`; None leaves the top k as the teacher gave it.

    Raises: ConfigError where the store is not filled.
    """

    def __init__(self, store: str | Path, c: float | None = None):
        self.store, self.c = LogitStore(store), c
        self.vocabulary: int | None = self.store.manifest.vocabulary

    def layers(self, student: MmkdForConditionalGeneration) -> int | None:
        return self.store.manifest.layers

    def width(self, student: MmkdForConditionalGeneration) -> int | None:
        return self.store.manifest.width

    def tower_width(self) -> None:
        return None

    def check(self, needs: Needs) -> None:
        """Objectives were checked before anything was loaded, but for layers that depend on a student not yet there."""
        require_kept(self.store.manifest, self.store.folder, needs)

    def outputs(
        self, student: MmkdForConditionalGeneration, batch: dict[str, Any], answers: AnswerBatch, needs: Needs
    ) -> SparseTargets:
        rows = batch["teacher_rows"]
        if len(rows["best"]) != len(answers.answer_ids):
            raise ValueError(f"{len(rows['best'])} rows of a cached teacher for {len(answers.answer_ids)} answers.")
        log_probs, weights, tail = rows["log_probs"], rows.get("weights"), rows.get("tail")
        if tail is not None:  # what rounding to the dtype on disk moved: k + 1 buckets that sum to 1 again
            total = torch.cat([log_probs, tail[:, None]], 1).logsumexp(1)  # [N]
            total = total.where(total > NOWHERE / 2, 0.0)  # a row of which nothing is known stays without mass
            log_probs, tail = log_probs - total[:, None], tail - total
            if self.c is not None:
                log_probs, tail = recalibrated(log_probs, self.c), None
            weights = log_probs.exp()
        answers_found, best, vocabulary = rows["answers"], rows["best"], self.store.manifest.vocabulary
        return SparseTargets(rows["ids"], log_probs, weights, tail, answers_found, best, vocabulary, hidden_of(rows))


def require_kept(manifest: Manifest, folder: Path, needs: Needs) -> None:
    """Raises ConfigError for layers of the teacher whose states a store did not keep."""
    kept = manifest.hidden_layers
    if missing := sorted(set(needs.teacher_hidden) - set(kept)):
        wanted = ", ".join(map(str, needs.teacher_hidden))
        raise ConfigError(
            f"hidden_states reads the teacher's layers {wanted}, and {folder} keeps {', '.join(map(str, kept))}: "
            f"{', '.join(map(str, missing))} are missing. Fill a store with teacher.hidden_layers: [{wanted}], or name "
            "pairs [student, teacher] of layers that it keeps."
        )


def require_same_text(section: TeacherSection | None, processor: MmkdProcessor) -> None:
    """Raises ConfigError where a cached teacher was asked about token ids of another tokenizer or template."""
    if section is not None and section.kind == "cached" and section.store is not None:
        folder = Path(section.store)
        require_same(read_manifest(folder), folder, text_identity(processor))


def require_same_teacher(section: TeacherSection, folder: Path) -> Manifest:
    """The manifest of a store. Raises ConfigError where it is of another teacher or other options than `section` has. A
    section that says who is asked is what `mmkd cache` fills a store by, its defaults included; of one that does not,
    what it leaves out is as the store has it."""
    manifest = read_manifest(folder)
    here: dict[str, Any] = given_settings(section)
    if section.model is not None or section.endpoint is not None:
        here = vars(TargetSettings(**here)) | {"quantize": section.quantize}
    elif section.quantize is not None:
        here["quantize"] = section.quantize
    if section.endpoint is not None:
        here["teacher"] = served_identity(section.endpoint)
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
