"""Whose answers a cache holds: what has to be the same when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.config.schema import DataSection
from mmkd.errors import ConfigError
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.teachers.targets import TargetSettings
from mmkd.teachers.tokenizers import vocabulary_digest

# How differences are named to a user; what is not here has its own name.
NAMES = {
    "format": "format, which before 2 kept nothing of the rows",
    "image_processor": "image processor",
    "shard_rows": "rows of a shard",
    "k": "k (top-k or draws)",
}


class Manifest(BaseModel):
    """`manifest.json` of a store. Hashes are SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1, 2] = Field(2, description="Shards of 1 lack the digests of their rows (`edited`).")
    model: str = Field(description="The teacher, as the config named it; for messages.")
    teacher: str = Field(description="Of its config.json and weights.")
    quantize: str | None
    precision: str
    image_processor: str
    tokenizer: str = Field(description="Of the student's: its ids are what the store counts in.")
    template: str = Field(description="Of the student's chat template.")
    vocabulary: int = Field(ge=1, description="Ids below this are known to both sides.")
    targets: Literal["top_k", "sample"]
    k: int = Field(ge=1)
    temperature: float = Field(gt=0)
    proposal: float = Field(gt=0)
    dtype: Literal["float16", "float32"]
    data: str = Field(description="Of the config's data.mixture and data.max_length.")
    rows: int = Field(ge=0, description="Of all sources together.")
    shard_rows: int = Field(ge=1)
    hidden_layers: tuple[int, ...] = Field((), description="Decoder layers whose hidden states are kept.")
    layers: int | None = Field(None, description="Decoder layers of a teacher whose hidden states are kept.")
    width: int | None = Field(None, description="Of those hidden states.")
    hits: bool = Field(False, description="Whether it holds, too, at which tokens the likeliest one is the answer.")

    @property
    def settings(self) -> TargetSettings:
        return TargetSettings(self.targets, self.k, self.temperature, self.proposal, self.dtype, self.hidden_layers)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Numbers of a shard's rows, counted through all sources."""
        first = shard * self.shard_rows
        return range(first, min(first + self.shard_rows, self.rows))


def differences(stored: Manifest, here: Mapping[str, Any]) -> list[str]:
    """What differs between a store and what is wanted `here`, in words."""
    kept = stored.model_dump()
    return [
        f"{NAMES.get(name, name)} ({_short(kept[name])} there, {_short(value)} here)"
        for name, value in here.items()
        if name != "model" and kept[name] != value
    ]


def _short(value: Any) -> str:
    return f"{value[:12]}.." if isinstance(value, str) and len(value) == 64 else str(value)


def model_files(model: str) -> Path:
    """The folder of a composed model: as named, or where the hub's cache has it. Raises ConfigError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (OSError, ValueError) as error:
        raise ConfigError(f"teacher.model {model} is neither a folder nor a model of the hub ({error}).") from error


def teacher_identity(model: str) -> dict[str, str]:
    """Hashes of a teacher's files, none of which is loaded: `teacher` and `image_processor`."""
    folder = model_files(model)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ConfigError(f"teacher.model {model} has no config.json or no *.safetensors: it is no model of mmkd.")
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return {
        "teacher": digest.hexdigest(),
        "image_processor": MmkdProcessor.from_pretrained(folder).fingerprint,
    }


def served_identity(endpoint: EndpointSection) -> str:
    """Hash of who is asked at an endpoint: the name under which its answers are kept, and what it is told with each."""
    extra = json.dumps(endpoint.beside, sort_keys=True) if endpoint.beside else ""
    return hashlib.sha256(f"served {endpoint.model}{extra}".encode()).hexdigest()


def text_identity(processor: MmkdProcessor) -> dict[str, str]:
    """Hashes of what turns a student's chats into token ids: `tokenizer` and `template`."""
    template = str(processor.chat_template)
    return {
        "tokenizer": vocabulary_digest(processor.tokenizer),
        "template": hashlib.sha256(template.encode()).hexdigest(),
    }


def data_identity(data: DataSection, pairs: bool = False) -> str:
    """Hash of where rows come from, as preference pairs or not, and of how long they may be; what stands in them now
    `mmkd.teachers.edited` tells."""
    what = {"mixture": [section.model_dump(mode="json") for section in data.mixture], "max_length": data.max_length}
    if data.rationales is not None:  # else stores of before would be of other data
        what["rationales"] = data.rationales.mode
    if pairs:
        what["pairs"] = True
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
