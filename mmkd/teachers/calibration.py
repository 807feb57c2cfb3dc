"""FIRST's recalibration of a teacher's top k: how sharp it should be, by what it gets right elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from mmkd.config.schema import DataSection, SourceSection
from mmkd.data.rejected import MOST_BAD
from mmkd.errors import ConfigError, DataError
from mmkd.teachers.edited import filled_digest, require_unedited
from mmkd.teachers.identity import data_identity
from mmkd.teachers.logit_store import LogitStore, read_manifest, shard_path
from mmkd.whole_files import write_whole

FILE, FOLDER = "calibration.json", "validation"
BINS = 15
CANDIDATES = tuple(float(c) for c in np.geomspace(0.005, 1.0, 160))


class Calibration(BaseModel):
    """`calibration.json` of a store.

    Attributes:
        store, validation: `filled_digest` of the store, and of the one that holds the answers to validation rows.
        c: see `recalibrated`; ece_before, ece_after: of the teacher as it is, and with c; over so many answer tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    store: str
    validation: str
    c: float = Field(gt=0)
    ece_before: float = Field(ge=0, le=1)
    ece_after: float = Field(ge=0, le=1)
    tokens: int = Field(ge=1)

    def __str__(self) -> str:
        text = (
            f"calibration error on {self.tokens:,} validation tokens: {100 * self.ece_before:.2f} % as it is, "
            f"{100 * self.ece_after:.2f} % with c = {self.c:.3g}"
        )
        if self.ece_after >= self.ece_before:
            return text + "; it was calibrated before: leave teacher.validation out when you train"
        return text


def recalibrated(log_probs: Tensor, c: float) -> Tensor:
    """log p', p'_i = exp(p_i / c) / sum_j exp(p_j / c) over the k ids of each token, [N, k] -> [N, k].

    FIRST (Shum et al. 2024, arXiv 2408.12168): the probabilities, not the logits, are divided by c; what is not among
    the k gets nothing. p' has the order of p for every c, sharper the smaller c is; c = 1 is nearly flat.
    """
    return torch.log_softmax(log_probs.exp() / c, -1)


def calibration_error(confidence: Tensor, hits: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): sum over bins of n_b / N |hits' share - mean confidence|.

    Args:
        confidence: [N] probability of the likeliest token; hits: [N] whether it is the answer's.
        bins: of equal width, (i / bins, (i + 1) / bins].
    """
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # [N]
    gaps = torch.zeros(bins, dtype=torch.double).index_add(0, place, hits.double() - confidence.double())
    return float(gaps.abs().sum() / len(confidence))


def choose(log_probs: Tensor, hits: Tensor) -> tuple[float, float, float]:
    """(c, ECE before, ECE after) of top-k log-probabilities [N, k], the likeliest first: c of the least error."""
    before = calibration_error(log_probs[:, 0].exp(), hits)
    p = log_probs.exp()
    after = []
    for c in CANDIDATES:
        confidence = torch.cat([1 / ((part - part[:, :1]) / c).exp().sum(-1) for part in p.split(65536)])
        after.append(calibration_error(confidence, hits))
    best = min(range(len(CANDIDATES)), key=after.__getitem__)
    return CANDIDATES[best], before, after[best]


def calibrate(folder: Path) -> Calibration:
    """Choose c from the validation rows kept in `folder`/validation, and keep it beside the store. Rows that the store
    holds too, by images and text, do not choose.

    Raises: DataError where there is no answer token among them; ConfigError where more than 10 % are the store's own.
    """
    store, trained = LogitStore(folder / FOLDER), LogitStore(folder).keys
    if (both := len(store.keys & trained)) > MOST_BAD * len(store):
        raise ConfigError(
            f"teacher.validation: {both:,} of its {len(store):,} rows, by images and text, stand in data.mixture too. "
            "How sure a teacher is of what it was trained on does not say how sure it should be; name rows it has not "
            "seen, e.g. another split."
        )
    log_probs, hits = [], []
    for number in range(store.manifest.shards):
        with safe_open(shard_path(store.folder, number), framework="numpy") as file:
            new = [key.tobytes() not in trained for key in file.get_tensor("keys")]
            if any(new):
                chosen = np.repeat(new, file.get_tensor("tokens"))
                log_probs.append(file.get_tensor("log_probs").reshape(-1, store.manifest.k)[chosen])
                hits.append(file.get_tensor("hits")[chosen])
    if not log_probs:
        raise DataError(f"{store.folder} has no usable row; see {store.folder / 'rejected.jsonl'}.")
    found = torch.from_numpy(np.concatenate(hits)).bool()
    c, before, after = choose(torch.from_numpy(np.concatenate(log_probs)).float(), found)
    calibration = Calibration(
        store=filled_digest(folder, read_manifest(folder)), validation=filled_digest(store.folder, store.manifest),
        c=c, ece_before=before, ece_after=after, tokens=len(found),
    )  # fmt: skip
    write_whole(folder / FILE, [calibration.model_dump_json(indent=1)])
    return calibration


def read_calibration(folder: Path) -> Calibration:
    """What was chosen for a store. Raises ConfigError where there is nothing, or nothing that can be read."""
    try:
        return Calibration.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"teacher.validation: {folder} has no {FILE}; mmkd cache with the same config asks about these rows and "
            "chooses c."
        ) from None
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder / FILE} cannot be read ({str(error).splitlines()[0]}); remove it and run mmkd cache again."
        ) from error


def require_calibrated(folder: Path, validation: Sequence[SourceSection], max_length: int) -> None:
    """Raises ConfigError where c was chosen for another store, on other rows, on rows edited since, or never."""
    found, rows = read_calibration(folder), folder / FOLDER
    manifest = read_manifest(rows)
    other_rows = found.validation != filled_digest(rows, manifest)
    wrong = [
        name
        for name, differs in (
            ("store", found.store != filled_digest(folder, read_manifest(folder))),
            ("rows", other_rows or manifest.data != validation_identity(validation, max_length)),
        )
        if differs
    ]
    if wrong:
        raise ConfigError(
            f"teacher.validation: {folder / FILE} was made for another {' and other '.join(wrong)}; run mmkd cache "
            "with this config."
        )
    require_unedited(rows, manifest, validation, "teacher.validation")


def validation_identity(validation: Sequence[SourceSection], max_length: int) -> str:
    """Hash of where validation rows come from, as `data_identity`."""
    return data_identity(DataSection(mixture=list(validation), max_length=max_length))
