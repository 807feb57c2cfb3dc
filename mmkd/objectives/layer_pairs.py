"""Which student layer is matched with which teacher layer."""

from __future__ import annotations

import re
from typing import Any

from mmkd.errors import ConfigError


def layer_choice(objective: str, layers: Any) -> str | list:
    """`layers` if it is written as `layer_pairs` reads it, before anyone knows how many layers there are.

    Raises: ConfigError.
    """
    if isinstance(layers, str):
        _step(objective, layers)
    elif not isinstance(layers, list) or not layers or not all(_whole(entry) or _pair(entry) for entry in layers):
        raise _wrong(objective, layers)
    return layers


def layer_pairs(objective: str, layers: Any, students: int, teachers: int) -> list[tuple[int, int]]:
    """Read a `layers` option.

    Args:
        layers: "all"; "every n", counted back from the last layer; a list of student layers, negative from the end,
            each matched with the teacher's layer at the same relative depth (last with last); or [student, teacher]
            pairs.
        students, teachers: decoder layers of each side.

    Raises: ConfigError for anything else, or a layer that a side does not have.
    """
    chosen = layer_choice(objective, layers)
    if isinstance(chosen, str):
        chosen = sorted(range(students - 1, -1, -_step(objective, chosen)))
    pairs = []
    for entry in chosen:
        if _whole(entry):
            student = _inside(objective, "student", entry, students)
            pairs.append((student, -(-(student + 1) * teachers // students) - 1))
        else:
            pairs.append(
                (_inside(objective, "student", entry[0], students), _inside(objective, "teacher", entry[1], teachers))
            )
    if len({student for student, _ in pairs}) < len(pairs):
        raise ConfigError(f"{objective}: layers={layers!r} names a student layer twice; name each once.")
    return pairs


def _step(objective: str, text: str) -> int:
    if text == "all":
        return 1
    found = re.fullmatch(r"every ([1-9]\d*)", text)
    if found is None:
        raise _wrong(objective, text)
    return int(found[1])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_whole, value))


def _inside(objective: str, side: str, layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise ConfigError(
            f"{objective}: the {side} has layers 0..{count - 1} (or -{count}..-1 from the end), not {layer}."
        )
    return layer % count


def _wrong(objective: str, layers: Any) -> ConfigError:
    return ConfigError(
        f"{objective}: layers={layers!r}, expected all, every n, a list of student layers such as [2, 5, 7], or pairs "
        "[student, teacher] such as [[1, 3], [3, 7]]."
    )
