"""Whether a folder was begun with the same settings, as far as they make its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Of an endpoint. Where it is served, how fast, and what may be spent there makes no other answers; nor does `omit`, by
# which a server answers that refused before: its answers are known by it.
MAKES_ANSWERS = ("model", "extra_body")


def changed(known: Any, now: Any) -> list[str]:
    """Key paths whose values differ, endpoints compared by MAKES_ANSWERS alone, wherever they stand; fleets not at all.

    Args:
        known, now: settings as JSON, of the run that began the folder and of this one.
    """
    return sorted(_differences(_answers_alone(known), _answers_alone(now)))


def _answers_alone(value: Any) -> Any:
    if isinstance(value, list):
        return [_answers_alone(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _answers_alone(one) for name, one in value.items()}
    if isinstance(endpoint := value.get("endpoint"), dict):
        # An option of a plug-in is kept as it was written, without defaults: what is not said is as good as empty.
        found["endpoint"] = {name: endpoint[name] for name in MAKES_ANSWERS if endpoint.get(name)}
    if any(isinstance(value.get(name), dict) for name in ("endpoint", "language", "vlm")):
        found.pop("fleet", None)
    return found


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif one != other:
        yield path
