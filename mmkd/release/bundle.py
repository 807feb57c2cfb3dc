"""From a run folder to a release: a folder that `transformers` loads with no mmkd installed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from mmkd.errors import ReleaseError
from mmkd.models import MmkdForConditionalGeneration, MmkdProcessor, modeling_mmkd, processing_mmkd
from mmkd.release.card import shown, write_card
from mmkd.release.llava import to_llava
from mmkd.release.run_folder import RunFolder
from mmkd.release.verify import expect, verify

Format = Literal["mmkd", "llava"]
AUTO_MAP = {
    "AutoConfig": "configuration_mmkd.MmkdConfig",
    "AutoModel": "modeling_mmkd.MmkdForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_mmkd.MmkdForConditionalGeneration",
    "AutoProcessor": "processing_mmkd.MmkdProcessor",
}
# Where the parts were found on the machine that trained; says nothing to anyone else.
OF_THIS_MACHINE = ("_name_or_path", "_model_name_or_path", "is_local", "local_files_only", "_commit_hash")
SHARD = "5GB"


def release(run: Path, out: Path, kind: Format = "mmkd") -> dict[str, Any]:
    """Write the model of `run` to `out`, and verify it in a process without mmkd.

    Nothing is at `out` before the release has verified: it is written to `out`.partial and renamed.

    Args:
        kind: "mmkd" with its own code beside it, or "llava", stock LLaVA of transformers, for full-vision students.

    Returns: the verification's record, also in verification.json.

    Raises: ReleaseError where the run is not finished, cannot be exported, or the release does not verify.
    """
    if out.exists():
        raise ReleaseError(f"{out} exists; remove it, or name another folder with --out.")
    source = RunFolder.read(run)
    model, processor = load_student(source.model)
    stock, stock_processor = to_llava(model, processor) if kind == "llava" else (None, None)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_model(stock or model, stock_processor or processor, partial)
        if kind == "mmkd":
            add_code(partial)
        expected = expect(model, processor)
        del model, stock  # a big model need not be in memory twice
        record = {"format": kind, "files": digests(partial), **verify(partial, expected, remote_code=kind == "mmkd")}
        (partial / "verification.json").write_text(json.dumps(record, indent=1) + "\n")
        write_card(partial / "README.md", source, record, out.name)
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner only
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return record


def load_student(folder: Path) -> tuple[MmkdForConditionalGeneration, MmkdProcessor]:
    """The trained model in the dtype of its file. Raises ReleaseError unless its file holds exactly its tensors."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table of what is wrong, which the error says shorter
    try:
        loaded: Any = MmkdForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
        model, info = loaded
        processor = MmkdProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ReleaseError(f"{folder} is not a model that mmkd can load: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    foreign, missing = sorted(info["unexpected_keys"]), sorted(info["missing_keys"])
    if foreign or missing:
        raise ReleaseError(
            f"{folder} holds {len(foreign)} tensors that are no part of the student "
            f"({', '.join(foreign[:3]) or 'none'}) and lacks {len(missing)} that are "
            f"({', '.join(missing[:3]) or 'none'}). Train or export it anew."
        )
    return model, processor


def write_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Weights, config, generation config, processor and chat template; then reopen the weights and compare.

    Raises: ReleaseError where the file holds another set of tensors than the model.
    """
    model.save_pretrained(folder, max_shard_size=SHARD)
    processor.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        edit_json(folder / name, without_machine)
    edit_json(folder / "config.json", with_shown_sources)
    edit_json(folder / "tokenizer_config.json", lambda settings: settings | {"padding_side": "left"})
    check_tensors(model, folder)


def check_tensors(model: PreTrainedModel, folder: Path) -> None:
    """Raise ReleaseError unless the files hold each tensor of the model once, in its shape and dtype, and no other.

    Of a stock model only shapes and dtypes are compared: transformers writes the names that hubs have always used.
    """
    written: dict[str, tuple[tuple[int, ...], int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                written[name] = (tuple(tensor.shape), tensor.element_size())
    tied = set(model.all_tied_weights_keys)
    wanted = {n: (tuple(t.shape), t.element_size()) for n, t in model.state_dict().items() if n not in tied}
    own_names = isinstance(model, MmkdForConditionalGeneration)
    if written != wanted if own_names else Counter(written.values()) != Counter(wanted.values()):
        wrong = sorted(n for n in wanted.keys() | written.keys() if wanted.get(n) != written.get(n))
        raise ReleaseError(f"the weights were written wrongly ({', '.join(wrong[:3])}); is the disk full?")


def add_code(folder: Path) -> None:
    """Copy the modules that rebuild the model, and name them in the configs, as remote code of transformers."""
    for module in (modeling_mmkd, processing_mmkd):
        for path in (str(module.__file__), *get_relative_import_files(str(module.__file__))):
            shutil.copyfile(path, folder / Path(path).name)
    edit_json(folder / "config.json", lambda settings: settings | {"auto_map": AUTO_MAP})
    own = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    edit_json(folder / "processor_config.json", lambda settings: settings | {"auto_map": own})


def edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")


def without_machine(settings: Any) -> Any:
    """The same settings without `OF_THIS_MACHINE`, at any depth."""
    if isinstance(settings, dict):
        return {k: without_machine(v) for k, v in settings.items() if k not in OF_THIS_MACHINE}
    if isinstance(settings, list):
        return [without_machine(item) for item in settings]
    return settings


def with_shown_sources(config: dict[str, Any]) -> dict[str, Any]:
    """The same config where `parts` names a model that was a folder here by the end of its path."""
    for part in config.get("parts", {}).values():
        part["source"] = shown(part["source"])
    return config


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by file name; a tokenizer of several chat templates keeps some in a folder of their own."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
