"""Rows that can be answered without looking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError
from mmkd.evaluate.matching import exact
from mmkd.synthesis.blind import UNKNOWN
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import shown
from mmkd.synthesis.replies import EMPTY
from mmkd.synthesis.requests import Request, Sampling
from mmkd.synthesis.selection.registry import Rows, register


@register("image_need")
def image_need(
    rows: Rows,
    model: dict[str, Any],
    tries: int = 1,
    share: float = 1.0,
    temperature: float = 0.0,
    max_tokens: int = 32,
    system: str = "",
) -> dict[int, str | BadRow]:
    """Drops rows that a model answers rightly without the pictures, and those of which that is not known.

    A question is answered blind where at least half of the tries give the record's own answer (but for case and
    punctuation); a row goes where at least `share` of its questions are. An empty reply is a wrong one. Where replies
    are missing, refused or cut off before they said a word, and a row would go if they were right, it goes as unknown.

    Args:
        model: who is asked, as `model` of `mmkd answer`.
        tries: per question, each with another seed; more than one needs a temperature.
        system: a system turn, e.g. to ask for short answers.

    Raises: ConfigError for options that cannot be; what `Asker.answer` raises, also where the model owes replies: a row
        that it was not asked about would stay for that.
    """
    try:
        section = ModelSection.model_validate(model)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("model", *map(str, first["loc"])))
        raise ConfigError(f"image_need: {place}: {first['msg']}.") from error
    if tries < 1 or not 0 < share <= 1 or (tries > 1 and temperature <= 0):
        raise ConfigError(
            f"image_need has tries {tries}, share {share}, temperature {temperature}; tries from 1, 0 < share <= 1, "
            "and a temperature above 0 for more than one try."
        )

    def requests() -> Iterator[Request]:
        for index, record in rows:
            for place, turns in enumerate(blind_questions(record, system)):
                for seed in range(rows.seed, rows.seed + tries):
                    sampling = Sampling(temperature, 1.0, max_tokens, seed)
                    yield Request(f"{index}/{place}/{seed}", turns, (), sampling, may_be_cut=True)

    right: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    missing: defaultdict[int, Counter[int]] = defaultdict(Counter)
    why: dict[int, str] = {}
    with open_asker(section, rows.folder / "image_need", all_replied=True, shared_budget=True) as asker:
        total = tries * sum(len(list(blind_questions(record, system))) for _, record in rows)
        for answer in shown(asker.answer(requests()), asker.tally, "asking blind", total):
            index, place, _ = map(int, answer.request.id.split("/"))
            truth = answers_of(rows.records[index])[place]
            right[index][place] += bool(answer.done and exact(answer.text, truth))
            if not answer.done and answer.kind != EMPTY:
                missing[index][place] += 1
                why[index] = f"{answer.kind}: {answer.reason}"
        Console(stderr=True).print(asker.tally.table(asker.backend.model))
    dropped: dict[int, str | BadRow] = {}
    for index, places in right.items():
        blind = sum(2 * count >= tries for count in places.values())
        perhaps = sum(2 * (count + missing[index][place]) >= tries for place, count in places.items())
        if blind >= share * len(places):
            dropped[index] = f"{blind} of {len(places)} questions are answered without the pictures"
        elif perhaps >= share * len(places):
            dropped[index] = BadRow(f"a reply without the pictures is missing: {why[index]}", UNKNOWN)
    return dropped


def blind_questions(record: Record, system: str = "") -> Iterator[tuple[Turn, ...]]:
    """Each question of a record, after the turns before it."""
    head = (Turn("system", system),) if system else ()
    turns = [turn for turn in record.turns if turn.role != "system" or not system]
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            yield (*head, *turns[:place])


def answers_of(record: Record) -> list[str]:
    return [turn.text for turn in record.turns if turn.role == "assistant"]
