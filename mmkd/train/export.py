"""The trained student as a model folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.checkpoints import mark_complete
from mmkd.errors import TrainingError
from mmkd.train.deepspeed import as_saved


def export(trainer: Any, composed: Any, target: Path, original: Callable[[], dict[str, Any]] | None = None) -> None:
    """Write the student (and nothing of teacher, heads or optimiser), reopen the file, compare names and shapes.

    Args:
        original: makes the weights anew that the stage quantised.
    """
    weights = trainer.student_weights()
    if weights is None:
        return
    from safetensors import SafetensorError, safe_open

    from mmkd.bits import restored
    from mmkd.lora import merged
    from mmkd.models.attention_capture import plain_name

    if original is not None:
        weights = restored(composed.model, weights, original())
    weights = as_saved(composed.model, merged(composed.model, weights))
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    composed.model.set_attn_implementation(plain_name(composed.model.config.text_config._attn_implementation))
    try:
        composed.model.save_pretrained(partial, state_dict=weights)
        composed.processor.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{partial} could not be written ({error}). Make room.") from error
    written = {}
    for path in partial.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            written |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    tied = set(composed.model.all_tied_weights_keys)
    wrong = [n for n, s in shapes.items() if n not in tied and written.get(n) != s]
    empty = [n for n, s in written.items() if 0 in s]
    if wrong or empty:
        raise TrainingError(
            f"{partial} was written with missing or empty weights ({', '.join((wrong + empty)[:3])}): mend the cause."
        )
    mark_complete(partial)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)
