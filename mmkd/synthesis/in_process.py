"""From a config's model section to a model of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmkd.config.synthesis_schema import ModelSection

if TYPE_CHECKING:
    from mmkd.synthesis.local import LocalModel


def open_local(section: ModelSection) -> LocalModel:
    """The model of a section that is no endpoint. Raises ConfigError, AssetError where it cannot be loaded."""
    from mmkd.synthesis import local_models  # torch, only where a model runs here

    if section.language is not None:
        return local_models.language_model(section.language)
    return local_models.vlm(section.vlm)
