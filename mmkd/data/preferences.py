"""Preference pairs: two answers to one question about the same images, of which one is better.

In a record the worse answer is `rejected` of its last turn. The batch holds both chats, each with the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.data.record_files import JsonLines, existing, images_of
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow

FORM = "it needs prompt, chosen and rejected, each a text or a list of {role, content}"


def preferences(path: str) -> Sequence[Record]:
    """Pairs as preference trainers keep them, and as mmkd compete writes them: one JSON object a line with `prompt`,
    `chosen` and `rejected`, each a text or a list of messages, and `images`.

    Args:
        path: of the file; image paths in it are relative to its folder, `data:` URIs carry the image itself.
    """
    return JsonLines(existing(path), pair_of)


def pair_of(row: Any, place: str, folder: Path) -> Record:
    """A record of a pair. Raises BadRow naming `place` where it is none."""
    if not isinstance(row, Mapping):
        raise BadRow(f"{place}: a {type(row).__name__}; {FORM}.")
    try:
        turns = _turns(row["prompt"], "user")
        (chosen,), (rejected,) = (_turns(row[name], "assistant") for name in ("chosen", "rejected"))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRow(f"{place}: not a preference pair ({error!r}); {FORM}, and one answer each.") from error
    last = Turn("assistant", chosen.text, rejected=rejected.text)
    return Record(
        str(row.get("id", place)), [*turns, last], images_of(row, place, folder), row.get("task") or "", "preferences"
    )


def _turns(said: Any, role: Any) -> list[Turn]:
    if isinstance(said, str):
        return [Turn(role, said)]
    return [Turn(message["role"], _text(message["content"])) for message in said]


def _text(content: Any) -> str:
    """Of a message; images are not placed inside turns, so their parts are passed over."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def with_rejected(turns: Sequence[Turn]) -> list[Turn]:
    """The chat that ends with the worse answer, which may be empty: a model that said nothing has answered so.

    Raises: BadRow where there is none, where it is the better one again, or where another turn has one.
    """
    *before, last = turns
    if last.rejected is None or any(turn.rejected is not None for turn in before):
        raise BadRow(
            "no preference pair: the last turn of a record, and no other, has to have a rejected answer. Leave `turns` "
            "out of its source, which joins records.",
            "no pair",
        )
    if not isinstance(last.rejected, str) or last.rejected.strip() == last.text.strip():
        raise BadRow(f"the rejected answer is {last.rejected!r}, the chosen one, too, or no text.", "no pair")
    return [*before, Turn(last.role, last.rejected)]


def last_run(answer: Sequence[int]) -> list[int]:
    """The last run of ones of a mask, alone."""
    end = max((place for place, one in enumerate(answer, 1) if one), default=0)
    start = max((place for place, one in enumerate(answer[:end], 1) if not one), default=0)
    return [int(start <= place < end) for place in range(len(answer))]
