"""Loading a transformers model that tools see with."""

from __future__ import annotations

from typing import Any

from mmkd.errors import ConfigError


def pretrained(kind: str, model: str, processor_class: Any, model_class: Any, device: str) -> tuple[Any, Any]:
    """Processor and model, the latter in eval mode on its device. Weights are safetensors; no code of its own is run.

    Args:
        kind: what it is for, e.g. "depth"; model: folder or hub id.

    Raises: ConfigError where there is no such model, or it is of another kind.
    """
    try:
        processor = processor_class.from_pretrained(model)
        loaded = model_class.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{kind} {model}: {str(error).splitlines()[0]} Give a folder or hub id of a {kind} model."
        ) from error
    return processor, loaded.to(device).eval()
