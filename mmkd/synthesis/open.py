"""From a config's model section to an Asker on a store."""

from __future__ import annotations

from pathlib import Path

from mmkd.config.synthesis_schema import ModelSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Backend
from mmkd.synthesis.in_process import open_local
from mmkd.synthesis.shards import merge_left
from mmkd.synthesis.store import Store


def open_backend(section: ModelSection, store: Store) -> Backend:
    """The model, with what the store paid it before counted against its budget.

    Raises: ConfigError, AssetError where it cannot be loaded or asked.
    """
    if section.endpoint is not None:
        from mmkd.synthesis.client import Endpoint

        return Endpoint(section.endpoint, store.spent(section.endpoint.model))
    return open_local(section)


def open_asker(section: ModelSection, folder: str | Path, reasks: int = 2, all_replied: bool = False) -> Asker:
    """An Asker that keeps its answers in `folder`, here or through a fleet; close it, or use it in a `with`.

    Args:
        all_replied: see `Asker`.
    """
    store = Store(folder)
    try:
        merge_left(store)
        if section.fleet is None:
            return Asker(open_backend(section, store), store, reasks, all_replied=all_replied)
        from mmkd.synthesis.fleet import Fleet

        return Fleet(section, section.fleet, store, reasks, all_replied=all_replied)
    except BaseException:
        store.close()
        raise
