"""`mmkd cache`: a config's teacher is asked about every row of its data, once, and its answers are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from mmkd.compose import compose_processor
from mmkd.config.schema import Config, RationalesSection, SourceSection, TeacherSection
from mmkd.data.rejected import forget, summary
from mmkd.data.sources import open_source
from mmkd.errors import ConfigError
from mmkd.models.configuration_mmkd import MmkdConfig
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.precision import on_cpu
from mmkd.teachers.calibration import FOLDER, calibrate, validation_identity
from mmkd.teachers.checks import check_filling
from mmkd.teachers.edited import drop_edited, edited_shards
from mmkd.teachers.fill import Filling
from mmkd.teachers.identity import Manifest, data_identity, model_files, teacher_identity, text_identity
from mmkd.teachers.live import LiveTeacher
from mmkd.teachers.logit_store import LogitStore, missing_shards, open_for_filling, read_manifest
from mmkd.teachers.pairs import any_reads_pairs, check_pairs
from mmkd.teachers.rows import TeacherBatches
from mmkd.teachers.targets import TargetSettings
from mmkd.teachers.tokenizers import require_one_tokenizer, vocabulary_size
from mmkd.train.deepspeed import patience, prepare_launch
from mmkd.train.quiet import quiet
from mmkd.train.run import with_precision
from mmkd.train.watch import Watch


def cache_teacher(
    config: Config, batch_size: int, shard_rows: int, estimate_only: bool, say: Callable[[str], None]
) -> None:
    """Fill `teacher.store`, alone or under a launcher, each rank its own shards; go on with what a kill left.

    Args:
        batch_size: rows of one forward; shard_rows: rows of a file, the most that a kill can lose.
        estimate_only: stop when size and time are known.
        say: takes what the user is told.

    Raises: ConfigError before the teacher's weights are loaded; DataError and TrainingError where filling has to stop.
    """
    settings = check_filling(config)
    check_pairs(config)
    quiet()
    rank, world = prepare_launch(config.training.device)
    config = with_precision(config, resume=False)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=patience())
    section: TeacherSection = config.teacher  # pyright: ignore[reportAssignmentType]
    name, folder = str(section.model), Path(str(section.store))
    with Watch(rank, world, lambda: "The same command goes on from the shards that are whole."), _alone(folder, rank):
        student, teacher = compose_processor(config.student), MmkdProcessor.from_pretrained(model_files(name))
        require_one_tokenizer(section.model_copy(update={"kind": "live"}), student.tokenizer, ["mmkd cache"])
        wanted = _manifest(config, section, settings, student, teacher, shard_rows) if rank == 0 else None
        job = _Job(config, section, student, teacher, batch_size, rank, world, estimate_only, say)
        pairs = any_reads_pairs(config)
        job.fill(folder, wanted, "data.mixture", config.data.mixture, config.data.rationales, pairs)
        if section.validation:
            if wanted is not None:
                there = validation_identity(section.validation, config.data.max_length)
                changes = {"data": there, "dtype": "float32", "hidden_layers": (), "layers": None, "width": None}
                wanted = wanted.model_copy(update=changes | {"hits": True})
            job.fill(folder / FOLDER, wanted, "teacher.validation", section.validation)
            if rank == 0 and not estimate_only:
                say(f"{folder}: {calibrate(folder)}")


@dataclass
class _Job:
    """One teacher that fills stores, loaded when it is first needed."""

    config: Config
    section: TeacherSection
    student: MmkdProcessor
    teacher: MmkdProcessor
    batch_size: int
    rank: int
    world: int
    estimate_only: bool
    say: Callable[[str], None]

    @cached_property
    def asked(self) -> LiveTeacher:
        cpu = on_cpu(self.config.training.device)
        device = torch.device("cpu") if cpu else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dtype = torch.bfloat16 if self.config.training.precision == "bf16" else torch.float32
        return LiveTeacher(str(self.section.model), dtype, self.config.student.attention, device, self.section.quantize)

    def fill(
        self,
        folder: Path,
        wanted: Manifest | None,
        at: str,
        mixture: Sequence[SourceSection],
        rationales: RationalesSection | None = None,
        pairs: bool = False,
    ) -> None:
        """Fill a store with the answers to the rows of `mixture`, or go on with it; or only say what it would take.

        Args:
            wanted: its manifest on rank 0, without the number of rows; at: key path of the mixture.
        """
        sources = [open_source(source, at=f"{at}[{i}]") for i, source in enumerate(mixture)]
        names = [f"{at}[{i}] {source.source}" for i, source in enumerate(mixture)]
        log, length = folder / "rejected.jsonl", self.config.data.max_length
        batches = TeacherBatches(sources, names, self.student, self.teacher, length, log, rationales, pairs)
        if self.estimate_only:
            if wanted is not None:
                manifest = wanted.model_copy(update={"rows": len(batches)})
                folder.mkdir(parents=True, exist_ok=True)
                filling = Filling(folder, manifest, self.asked, batches, self.batch_size)
                left = missing_shards(folder, manifest) + edited_shards(folder, manifest, batches.record)
                self.say(filling.estimate(sorted(left), self.world))
            return
        if wanted is not None:
            wanted = wanted.model_copy(update={"rows": len(batches)})
            open_for_filling(folder, wanted)
            if done := drop_edited(folder, wanted, batches.record):
                self.say(done)
            left = missing_shards(folder, wanted)
            forget(log, {batches.place(row) for shard in left for row in wanted.rows_of(shard)})
        _barrier(self.world)
        manifest = read_manifest(folder)
        missing = missing_shards(folder, manifest)
        _barrier(self.world)  # no shard is written before all ranks have seen the same ones missing
        if missing:
            filling = Filling(folder, manifest, self.asked, batches, self.batch_size)
            if self.rank == 0:
                self.say(filling.estimate(missing, self.world))
            filling.fill(missing[self.rank :: self.world], self.config.data.workers, quiet=self.rank != 0)
            _barrier(self.world)
        if self.rank == 0:
            self.say(told(folder))


def told(folder: Path) -> str:
    """What a filled store holds, in words."""
    store = LogitStore(folder)
    bad = summary(folder / "rejected.jsonl")
    aside = f"; set aside: {', '.join(f'{count} {kind}' for kind, count in bad.items())}" if bad else ""
    return (
        f"{folder}: {len(store):,} different rows, {store.tokens:,} answer tokens, {store.bytes / 1e6:,.1f} MB, "
        f"{store.bytes / max(store.tokens, 1):,.0f} bytes a token{aside}"
    )


def _manifest(
    config: Config,
    section: TeacherSection,
    settings: TargetSettings,
    student: MmkdProcessor,
    teacher: MmkdProcessor,
    shard_rows: int,
) -> Manifest:
    model = str(section.model)
    text = MmkdConfig.from_pretrained(model_files(model)).text_config
    vocabulary = min(text.vocab_size, vocabulary_size(teacher.tokenizer), vocabulary_size(student.tokenizer))
    if settings.targets == "top_k" and settings.k > vocabulary:
        raise ConfigError(f"teacher.k is {settings.k}; allowed: up to {vocabulary}, the ids that both sides have.")
    hidden: dict[str, Any] = {}
    if settings.hidden_layers:
        if settings.hidden_layers[-1] >= text.num_hidden_layers:
            raise ConfigError(
                f"teacher.hidden_layers names {settings.hidden_layers[-1]}; allowed: 0..{text.num_hidden_layers - 1}."
            )
        hidden = {"layers": text.num_hidden_layers, "width": text.hidden_size}
    return Manifest(
        model=model,
        precision=config.training.precision,
        vocabulary=vocabulary,
        data=data_identity(config.data, any_reads_pairs(config)),
        rows=0,
        shard_rows=shard_rows,
        quantize=section.quantize,
        **teacher_identity(model),
        **text_identity(student),
        **vars(settings),
        **hidden,
    )


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()


@contextmanager
def _alone(folder: Path, rank: int) -> Iterator[None]:
    """Hold the store against a second command. A kill lets go of it. Raises ConfigError where one holds it."""
    if rank:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"another mmkd cache is filling {folder}; wait for it, or name another store.") from None
    try:
        yield
    finally:
        lock.release()
