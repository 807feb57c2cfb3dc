"""Preference pairs: the better and the worse answer to one question, in the chat form that preference trainers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.data.write_records import relative_to
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.items import Item, open_rows
from mmkd.synthesis.competing.refining import Refined
from mmkd.synthesis.requests import digest

FILE = "preferences.jsonl"


def preferences(
    outcomes: Sequence[Outcome],
    items: Mapping[str, Item],
    floor: float,
    folder: Path,
    refined: Mapping[str, Refined] | None = None,
) -> Iterator[dict[str, Any]]:
    """Pairs of a round: the better answer reaches the floor, and both orders of a judge prefer it.

    `winner` tells the student's wins from the teacher's; a `refiner` has mended the student's own answer, and its pair
    stands in the place of the teacher's. Image paths are relative to `folder`.

    Args:
        refined: mended answers, by item.
    """
    mended = refined or {}
    for outcome in outcomes:
        if outcome.kind not in (Kind.HARD, Kind.WIN) or not outcome.agree or outcome.scores is None:
            continue
        teacher, student = zip((outcome.teacher, outcome.student), outcome.scores, strict=True)
        if outcome.id in mended:
            winner, better, worse = "refiner", *mended[outcome.id].answers()
        elif outcome.kind is Kind.HARD:
            winner, better, worse = "teacher", teacher, student
        else:
            winner, better, worse = "student", student, teacher
        if better[1] < floor:
            continue
        item = items[outcome.id]
        yield {
            "id": item.id,
            "images": [relative_to(folder, image) for image in item.images],
            "prompt": [{"role": "user", "content": item.question}],
            "chosen": [{"role": "assistant", "content": better[0]}],
            "rejected": [{"role": "assistant", "content": worse[0]}],
            "winner": winner,
            "scores": [better[1], worse[1]],
        }


def gathered(folders: Sequence[Path], into: Path) -> Iterator[dict[str, Any]]:
    """The pairs of rounds, oldest first, image paths relative to the folder `into`.

    Of one item's same two answers the newest word counts: a teacher that has learned, or a judge that is not sure, may
    have turned them round. Memory holds where it stands.
    """

    def placed(row: dict[str, Any], _: str, folder: Path) -> dict[str, Any]:
        return row | {"images": [relative_to(into, folder / image) for image in row["images"]]}

    rounds = [open_rows(folder / FILE, placed) for folder in folders]
    newest: dict[bytes, tuple[int, int]] = {}  # round and line, by item and answers
    for number, pairs in enumerate(rounds):
        for place, row in enumerate(pairs):
            answers = {row[name][0]["content"].strip() for name in ("chosen", "rejected")}
            if len(answers) == 2:
                newest[bytes.fromhex(digest([row["id"], *sorted(answers)]))] = number, place
    return (rounds[number][place] for number, place in newest.values())
