"""Asking a teacher about every row once, and keeping its answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmkd.data.loader import batch_loader
from mmkd.data.teacher_rows import Rows
from mmkd.errors import DataError, MmkdError, TrainingError
from mmkd.objectives import Needs
from mmkd.teachers.identity import Manifest
from mmkd.teachers.live import LiveTeacher
from mmkd.teachers.logit_store import BY_ENTRY, write_shard
from mmkd.teachers.reading import answer_batch
from mmkd.teachers.rows import TeacherBatches
from mmkd.teachers.targets import keep, keep_hidden, uniforms_of

TIMED = 4  # batches, spread over the data, from which size and time are estimated


@dataclass
class Filling:
    """A store on its way.

    Attributes:
        batch_size: rows of one forward of the teacher.
    """

    folder: Path
    manifest: Manifest
    teacher: LiveTeacher
    batches: TeacherBatches
    batch_size: int

    def plan(self, shards: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(shard, rows) of every batch of these shards. What stands in a batch does not depend on what was done before,
        so that a store filled in several goes is the one filled in one."""
        for shard in shards:
            rows = self.manifest.rows_of(shard)
            for start in range(0, len(rows), self.batch_size):
                yield shard, list(rows[start : start + self.batch_size])

    def fill(self, shards: Sequence[int], workers: int, quiet: bool) -> None:
        """Write these shards, showing progress and time left.

        Raises: DataError once `mmkd.data.rejected.too_many` rows were bad, or answers are no numbers.
        """
        plan = list(self.plan(shards))
        loader = batch_loader(self.batches, [rows for _, rows in plan], workers)
        answered: dict[bytes, Rows] = {}  # of the shard so far; equal rows are kept once
        digests: list[bytes] = []
        with tqdm(desc="Teacher", unit=" rows", total=sum(len(rows) for _, rows in plan), disable=quiet) as progress:
            for place, ((shard, rows), batch) in enumerate(zip(plan, loader, strict=True)):
                for key, kept in self.ask(batch):
                    answered.setdefault(key, kept)
                digests += batch["rows"]
                if place + 1 == len(plan) or plan[place + 1][0] != shard:
                    write_shard(self.folder, shard, list(answered.items()), digests)
                    answered, digests = {}, []
                progress.update(len(rows))

    def estimate(self, shards: Sequence[int], processes: int) -> str:
        """Size and time of these shards, in words, from a few timed batches.

        Raises: TrainingError where they would not fit on the disk.
        """
        plan = [rows for _, rows in self.plan(shards)]
        if not plan:
            return f"{self.folder}: nothing left to ask"
        count = min(TIMED, len(plan))
        chosen = [plan[number * len(plan) // count] for number in range(count)]
        self.ask(self._made(chosen[0]))  # warms up
        started = time.perf_counter()
        kept = [rows for numbers in chosen for _, rows in self.ask(self._made(numbers))]
        seconds = time.perf_counter() - started
        tokens, size = sum(len(r["counts"]) for r in kept), sum(array.nbytes for r in kept for array in r.values())
        left = sum(map(len, plan))
        share = left / sum(map(len, chosen))
        space, free = size * share, shutil.disk_usage(self.folder).free
        if space > free:
            raise TrainingError(
                f"{self.folder} would need about {space / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there. Make "
                "room, or lower teacher.k or the number of teacher.hidden_layers."
            )
        settings, wait = self.manifest.settings, seconds * share / processes
        what = f"the top {settings.k}" if settings.targets == "top_k" else f"{settings.k} draws"
        also = f" and {len(settings.hidden_layers)} hidden states of {self.manifest.width}"
        return (
            f"{self.folder}: {left:,} of {self.manifest.rows:,} rows to ask, about {tokens * share:,.0f} answer "
            f"tokens, {what} of {self.manifest.vocabulary:,} ids{also * bool(settings.hidden_layers)} each: "
            f"{size / max(tokens, 1):,.0f} bytes a token, "
            f"{space / 1e6:,.1f} MB; about {f'{wait:.0f} s' if wait < 100 else f'{wait / 60:,.0f} min'} on {processes} "
            f"process{'es' * (processes > 1)}"
        )

    @torch.no_grad()
    def ask(self, batch: dict[str, Any]) -> list[tuple[bytes, Rows]]:
        """What is kept of the teacher's answers to a batch of `TeacherBatches`, row by row.

        Raises: DataError where the teacher's logits are no numbers.
        """
        keys = batch["keys"]
        if not keys:
            return []
        device, settings = next(self.teacher.model.parameters()).device, self.manifest.settings
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        answers = answer_batch(tensors | {"normalizer": 1.0})
        needs = Needs(teacher=True, teacher_hidden=settings.hidden_layers)
        outputs = self.teacher.outputs(self.teacher.model, tensors, answers, needs)
        counts = torch.bincount(answers.rows, minlength=len(keys)).tolist()  # rows stand one after the other
        uniforms = uniforms_of(keys, counts, settings.k) if settings.targets == "sample" else None
        kept = keep(
            outputs.answer_hidden, outputs.head, answers.answer_ids, self.manifest.vocabulary, settings, uniforms
        )
        kept |= keep_hidden(outputs.hidden)
        if self.manifest.hits:
            kept["hits"] = (kept["best"] == answers.answer_ids.cpu().numpy()).astype(np.uint8)
        rows = _by_sample(kept, counts)
        for sample, found in zip(batch["sample_ids"], rows, strict=True):
            if not all(np.isfinite(found[name]).all() for name in ("log_probs", "weights") if name in found):
                raise DataError(
                    f"record {sample!r}: the teacher's logits are no numbers, or weights do not fit teacher.dtype "
                    f"{settings.dtype}. Use training.precision: fp32, or teacher.dtype: float32."
                )
        return list(zip(keys, rows, strict=True))

    def _made(self, rows: list[int]) -> dict[str, Any]:
        batch = self.batches[rows]
        if isinstance(batch, MmkdError):
            raise batch
        return batch


def _by_sample(kept: Rows, tokens: Sequence[int]) -> list[Rows]:
    """Arrays of a batch cut into those of its samples, which have so many answer tokens each."""
    by_token = np.cumsum(tokens)[:-1]
    by_entry = np.concatenate([[0], np.cumsum(kept["counts"], dtype=np.int64)])[by_token]
    cut = {name: np.split(array, by_entry if name in BY_ENTRY else by_token) for name, array in kept.items()}
    return [{name: pieces[sample] for name, pieces in cut.items()} for sample in range(len(tokens))]
