"""Few questions about many pictures each: rows that tell a program which is right from one that was lucky."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.scene_questions import TYPES, Question, offers
from mmkd.data.scenes import scene
from mmkd.data.write_records import write_jsonl
from mmkd.errors import DataError
from mmkd.whole_files import write_whole

GRID = 2


def shared_questions(folder: Path, seed: int, each: int, pictures: int, most: int) -> Path:
    """FOLDER/rows.jsonl: `each` questions of every type, their forms taking turns, each about `pictures` scenes, its
    answers as balanced as the scenes have them.

    Args:
        most: train scenes of this seed that are looked through.

    Raises: DataError where so many scenes do not offer enough such questions.
    """
    file = folder / "rows.jsonl"
    if file.exists():
        return file
    found: dict[str, dict[str, dict[str, dict[str, list[int]]]]] = {
        kind: defaultdict(lambda: defaultdict(lambda: defaultdict(list))) for kind in TYPES
    }  # type, form, text, answer: scenes
    for index in range(most):
        for one in _offered(seed, index):
            found[one.type][one.form][one.text][one.answer].append(index)
    draw = random.Random(f"shared/{seed}")
    chosen: list[tuple[str, str, list[tuple[int, str]]]] = []
    for kind, forms in found.items():
        usable = [
            draw.sample(texts, len(texts))
            for _, known in sorted(forms.items())
            if (texts := [text for text, of in sorted(known.items()) if len(of) > 1 and _count(of) >= pictures])
        ]
        turns = [text for text in chain.from_iterable(zip_longest(*usable)) if text is not None][:each]
        if len(turns) < each:
            raise DataError(f"{most:,} scenes have {len(turns)} {kind} questions for {pictures} pictures, not {each}.")
        where = {text: of for known in forms.values() for text, of in known.items()}
        chosen += [(kind, text, _balanced(where[text], pictures)) for text in turns]
    write_jsonl(file, _records(folder / "images", seed, chosen))
    return file


def _offered(seed: int, index: int) -> Iterator[Question]:
    here = scene("train", index, seed, GRID, questions=1)
    forms = chain.from_iterable(kind.values() for kind in offers(list(here.things), held_out=False).values())
    yield from (one for form in forms for answers in form.values() for one in answers)


def _count(answers: dict[str, list[int]]) -> int:
    return sum(map(len, answers.values()))


def _balanced(answers: dict[str, list[int]], pictures: int) -> list[tuple[int, str]]:
    """(scene, answer), the answers taking turns for as long as they have scenes."""
    columns = [[(index, answer) for index in places] for answer, places in sorted(answers.items())]
    return [one for one in chain.from_iterable(zip_longest(*columns)) if one is not None][:pictures]


def _records(images: Path, seed: int, chosen: list[tuple[str, str, list[tuple[int, str]]]]) -> Iterator[Record]:
    images.mkdir(parents=True, exist_ok=True)
    origin = Provenance(parent="easyvqa", engine="scenes", seed=seed, license="MIT")
    for number, (kind, text, rows) in enumerate(chosen):
        for index, answer in rows:
            picture = images / f"{index}.png"
            here = scene("train", index, seed, GRID, questions=1)
            if not picture.exists():
                write_whole(picture, [here.png()])
            turns = [Turn("user", text), Turn("assistant", answer)]
            yield Record(f"{here.id}/{number}", turns, [str(picture)], kind, "scenes", origin)
