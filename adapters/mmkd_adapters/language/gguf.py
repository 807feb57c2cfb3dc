"""Decoders in GGUF files: `gguf:smollm2-135m`, an asset of mmkd, or `gguf:PATH.gguf`."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mmkd import assets
from mmkd.contracts import LanguageParts, Spec
from mmkd.errors import AssetError

from ..sources import refuse_revision, unknown_name
from .hf import load_folder, load_tokenizer

CONVERSION = 2  # raise it when `convert` changes, so that older folders are not taken


class GgufAdapter:
    """A quantised file, turned once into an fp32 folder in the cache: later loads take a fraction of a second."""

    def load(self, spec: Spec, *, pretrained: bool = True) -> LanguageParts:
        """See `mmkd.contracts.LanguageAdapter`. ConfigError: unknown asset; AssetError: no readable file."""
        file, license = found(spec)
        folder = converted(spec, file)
        parts = load_folder(spec, str(folder), pretrained, license)
        parts.notes = {"gguf": file.name, "folder": str(folder)}
        return parts

    def tokenizer(self, spec: Spec) -> PreTrainedTokenizerBase:
        """See `mmkd.contracts.LanguageAdapter`; errors as `load`. The first use of a file converts it whole."""
        return load_tokenizer(spec, str(converted(spec, found(spec)[0])))


def found(spec: Spec) -> tuple[Path, str]:
    """The file that `spec` means, and its licence. ConfigError: unknown asset; AssetError: no such file."""
    refuse_revision(spec)
    if spec.name.endswith(".gguf"):
        file = Path(spec.name)
        if not file.is_file():
            raise AssetError(f"{spec}: there is no file {file}.")
        return file, "unknown"
    if spec.name in assets.ASSETS:
        return assets.path(spec.name), assets.ASSETS[spec.name].license
    raise unknown_name(spec, spec.name, assets.ASSETS, "mmkd's assets (a file's name must end in .gguf)")


def converted(spec: Spec, file: Path) -> Path:
    """The fp32 folder of a GGUF file, made on first use; whole or not there at all, also if killed meanwhile."""
    stat = file.stat()
    key = hashlib.sha256(f"{CONVERSION} {file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = assets.cache() / "gguf" / f"{file.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # the ranks of one run all come here at once
        if not folder.exists():
            scratch = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(scratch, ignore_errors=True)  # of a conversion that was killed
            try:
                convert(spec, file, scratch)
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def convert(spec: Spec, file: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file as an ordinary fp32 folder of transformers."""
    where, name = str(file.resolve().parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    except (OSError, ValueError, struct.error) as error:  # struct.error: the file ends inside its header
        raise AssetError(f"{spec}: {file} cannot be read as GGUF ({error}); fetch it again.") from error
    # The loader dequantises but still calls the model quantised, which would forbid saving and training it.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    del model.config.quantization_config
    # Under a launcher transformers lets rank 0 alone write, silently; whichever rank came first does it here.
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
