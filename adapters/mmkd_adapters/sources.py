"""What every adapter needs: near names in errors, licences, and the same error whether a folder or the hub failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from safetensors import SafetensorError

from mmkd.contracts import Spec
from mmkd.errors import AssetError, ConfigError

# What reading a model ends in that is not there, half copied, or not of the library's.
UNREADABLE = (OSError, ValueError, SafetensorError)
# The hub writes licences in lower case; SPDX does not.
SPDX = {
    name.lower(): name
    for name in ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0")
}


def unknown_name(spec: Spec, name: str, names: Iterable[str], where: str) -> ConfigError:
    """The error for a name that `where` does not have, with the nearest names that it has."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {len(names)}: {', '.join(names[:5])} .."
    return ConfigError(f"{spec}: {where} has no {name!r}. {hint}")


def refuse_revision(spec: Spec) -> None:
    """ConfigError if `spec` names a revision, for libraries that keep none."""
    if spec.revision:
        raise ConfigError(f"{spec}: {spec.source} keeps no revisions; remove @{spec.revision}.")


def not_found(spec: Spec, error: Exception) -> AssetError:
    """The error for weights that are neither on disk nor to be had from the hub."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return AssetError(
        f"{spec} cannot be loaded: {reason} Give an existing folder or hub id, go online, "
        "or set pretrained: false where random weights will do."
    )


def require_all(spec: Spec, info: dict[str, Any]) -> None:
    """AssetError if transformers found fewer tensors than the model has: it would fill in random ones."""
    if missing := sorted(info["missing_keys"]):
        raise AssetError(f"{spec}: the weights lack {len(missing)} tensors of the model, e.g. {missing[0]}.")


def spdx(name: str | None) -> str:
    """SPDX id of a licence as model cards write it; "unknown" for none."""
    return SPDX.get(name.lower(), name) if name else "unknown"


def card_license(name: str, revision: str | None) -> str:
    """SPDX id from the model card of a folder or hub id; "unknown" without a card."""
    try:
        if Path(name).is_dir():
            card = Path(name) / "README.md"
        else:
            card = Path(hf_hub_download(name, "README.md", revision=revision))
        found = ModelCard.load(card).data.license
    except (OSError, ValueError, yaml.YAMLError):  # no card, no network, or one that cannot be read
        return "unknown"
    return spdx(found if isinstance(found, str) else None)
