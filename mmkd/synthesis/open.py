"""From a config's model section to an Asker on a store."""

from __future__ import annotations

from pathlib import Path

from mmkd.config.synthesis_schema import ModelSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Backend
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.in_process import open_local
from mmkd.synthesis.paid import Paid, Purse
from mmkd.synthesis.requests import Usage
from mmkd.synthesis.shards import merge_left
from mmkd.synthesis.store import Store


def open_backend(section: ModelSection, paid: Paid, answered: bool) -> Backend:
    """The model, with what it was paid before counted against its budget; see `Endpoint`.

    Raises: ConfigError, AssetError where it cannot be loaded or asked.
    """
    if section.endpoint is not None:
        from mmkd.synthesis.client import Endpoint

        return Endpoint(section.endpoint, paid, answered)
    return open_local(section)


def open_asker(
    section: ModelSection,
    folder: str | Path | Store,
    reasks: int = 2,
    all_replied: bool = False,
    shared_budget: bool = False,
    purse: Purse | None = None,
) -> Asker:
    """An Asker that keeps its answers in `folder`, here or through a fleet; close it, or use it in a `with`.

    Args:
        folder: or its store, which the asker closes; see `Store.again`.
        all_replied: see `Asker`.
        shared_budget: of a job whose stores lie side by side and are open one at a time: what the others paid a model
            of this name counts against the budget, too.
        purse: of a job that has several askers open at once: what a model of this name is paid by any of them counts.

    Raises: as `open_backend`; DataError where another process writes one of the stores.
    """
    store = folder if isinstance(folder, Store) else Store(folder)
    try:
        merge_left(store)
        endpoint, paid = section.endpoint, Paid()
        if endpoint is not None and purse is not None:
            paid = purse[endpoint.model]
        elif endpoint is not None:
            beside = _paid_beside(store.folder, endpoint.model) if shared_budget else Usage()
            paid = Paid(store.spent(endpoint.model) + beside)
        check = ImageCheck(endpoint, store.folder) if endpoint is not None and endpoint.check_images else None
        if section.fleet is None:
            answered = endpoint is not None and store.answered(endpoint.model)
            backend = open_backend(section, paid, answered)
            return Asker(backend, store, reasks, all_replied=all_replied, check=check)
        from mmkd.synthesis.fleet import Fleet

        return Fleet(section, section.fleet, store, reasks, all_replied=all_replied, paid=paid, check=check)
    except BaseException:
        store.close()
        raise


def _paid_beside(folder: Path, model: str) -> Usage:
    """What the other stores in the same folder paid a model."""
    total = Usage()
    for journal in sorted(folder.parent.glob("*/journal.jsonl")):
        if journal.parent != folder:
            with Store(journal.parent) as store:
                merge_left(store)
                total += store.spent(model)
    return total
