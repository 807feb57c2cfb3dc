"""Image files to VocoCache files: one safetensors an image, to be asked about later without the image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm

from mmkd.data.images import FORMATS, open_image, read_image
from mmkd.data.rejected import MOST_BAD, BadRow, RejectedLog, too_many
from mmkd.errors import ConfigError, DataError
from mmkd.inference.reader import Reader
from mmkd.models import VocoCache

REJECTED = "rejected.jsonl"
Image.init()
SUFFIXES = {suffix for suffix, kind in Image.EXTENSION.items() if kind in (*FORMATS, "MPO")}  # MPO is read as JPEG


@dataclass
class Job:
    """One image: where it is, where it goes, and the SHA-256 of its bytes, by which a finished one is known again."""

    source: Path
    target: Path
    digest: str = ""


@dataclass
class Outcome:
    """What became of the images.

    Attributes:
        compressed, kept, bad: done now; found whole from an earlier run; set aside.
        tokens: k; vision_tokens: n of an image, where one was compressed; nbytes: of its K,V.
    """

    tokens: int
    compressed: int = 0
    kept: int = 0
    bad: int = 0
    vision_tokens: int = 0
    nbytes: int = 0

    def __str__(self) -> str:
        text = f"compressed {self.compressed:,}, already there {self.kept:,}, set aside {self.bad:,}"
        if self.compressed:
            text += f" · {self.vision_tokens} -> {self.tokens} tokens, {self.nbytes:,} bytes an image"
        return text + (f" · reasons in {REJECTED}" if self.bad else "")


def compress_files(
    model: str, images: list[Path], out: Path, tokens: int | Literal["full"] | None = None, batch_size: int = 16
) -> Outcome:
    """Compress every image to `out`/NAME.safetensors, NAME its file name, or its path below the folder it was named by.

    An image whose file is already there, whole, from the same bytes and by the same model and k, is skipped. A broken
    one is set aside with its reason in `out`/rejected.jsonl.

    Args:
        images: files and folders; of a folder, everything below it that has the suffix of a format that is read.

    Raises: ConfigError for a model without compression tokens, no images, or two images of one name;
        DataError once `too_many` images were bad, or none could be used.
    """
    jobs = list_jobs(images, out)
    if tokens == "full":
        raise ConfigError("--tokens full compresses nothing; give a whole number from 1.")
    reader = Reader.open(model, tokens)
    if reader.tokens is None:
        raise ConfigError(f"{model} has no compression tokens; train or distil a student with student.voco first.")
    outcome, log = Outcome(reader.tokens), RejectedLog(out / REJECTED)
    identity = {**reader.loaded.model.voco_identity(), "tokens": str(reader.tokens)}
    with tqdm(total=len(jobs), desc="Compressing", unit="image", disable=None) as progress:
        for batch in _batches(_readable(jobs, identity, outcome, log, progress), batch_size):
            cache = reader.compress([image for _, image in batch])
            for number, (job, _) in enumerate(batch):
                _save(cache.select([number]), job)
            outcome.compressed += len(batch)
            outcome.vision_tokens, outcome.nbytes = int(cache.image_tokens[0]), cache.nbytes
    if not outcome.compressed and not outcome.kept:
        raise DataError(f"none of the {outcome.bad} images could be read; the reasons are in {log.path}.")
    return outcome


def list_jobs(images: list[Path], out: Path) -> list[Job]:
    """What there is to do, by name. Raises ConfigError for nothing at all, or two images that would be one file."""
    found: dict[Path, Path] = {}
    for given in images:
        files = [given]
        if given.is_dir():
            files = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        for file in files:
            name = file.relative_to(given) if given.is_dir() else Path(file.name)
            target = out / name.with_name(name.name + ".safetensors")
            if found.setdefault(target, file).resolve() != file.resolve():
                raise ConfigError(f"{found[target]} and {file} would both be {target}; compress them to two folders.")
    if not found:
        raise ConfigError(f"no images in {', '.join(map(str, images)) or 'an empty list'}; name files, or folders.")
    return [Job(source, target) for target, source in found.items()]


def is_whole(job: Job, identity: dict[str, str]) -> bool:
    """Whether the target holds this image, compressed by this model to this k."""
    try:
        cache = VocoCache.load(str(job.target))
    except (OSError, ValueError, KeyError, SafetensorError):
        return False
    wanted = {**identity, "image": job.digest}
    return all(cache.identity.get(name) == value for name, value in wanted.items())


def _readable(
    jobs: list[Job], identity: dict[str, str], outcome: Outcome, log: RejectedLog, progress: tqdm
) -> Iterator[tuple[Job, Image.Image]]:
    """Decoded images that have yet to be compressed; what cannot be decoded is set aside."""
    for seen, job in enumerate(jobs, 1):
        progress.update()
        try:
            data = read_image(str(job.source))
            job.digest = hashlib.sha256(data).hexdigest()
            if job.target.exists() and is_whole(job, identity):
                outcome.kept += 1
                continue
            yield job, open_image(data)
        except BadRow as error:
            outcome.bad += 1
            log.note(str(job.source), 0, job.target.stem, error)
            if too_many(outcome.bad, seen):
                raise DataError(
                    f"{outcome.bad} of {seen} images could not be read, more than {MOST_BAD:.0%}; the last one, "
                    f"{job.source}: {error} All reasons are in {log.path}. What is compressed stays; mend the images "
                    "and run the same command again."
                ) from error


def _batches(items: Iterator[tuple[Job, Image.Image]], size: int) -> Iterator[list[tuple[Job, Image.Image]]]:
    batch: list[tuple[Job, Image.Image]] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch  # what was read before the stop is not lost
        raise
    if batch:
        yield batch


def _save(cache: VocoCache, job: Job) -> None:
    """Write under another name first, so that a killed run leaves no file that looks finished."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    partial = job.target.with_name(f".{job.target.name}.partial")
    replace(cache, identity={**cache.identity, "image": job.digest}).save(str(partial))
    partial.chmod(0o644)  # safetensors are written for their owner only
    os.replace(partial, job.target)
