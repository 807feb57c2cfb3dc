"""Answers and verdicts lie on disk: memory holds their places."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mmkd.config.compete_schema import RefineSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.on_disk import ById, Made, Spool
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing import asking, assessing, training
from mmkd.synthesis.competing.asking import Said, answered
from mmkd.synthesis.competing.assessing import Kind, OrderBias, Outcome, assess, good_enough, standing
from mmkd.synthesis.competing.card import pairs_of
from mmkd.synthesis.competing.compete import Competition
from mmkd.synthesis.competing.items import Item, open_items, open_rows, read_items, write_items, write_rows
from mmkd.synthesis.competing.pairs import gathered
from mmkd.synthesis.competing.refining import Mended
from mmkd.synthesis.judging.judge import Verdict
from mmkd.synthesis.requests import Answer, Sampling, Status
from tests.synthesis.competing.test_growing import config

COUNT, LONG = 400, 200_000  # letters of an answer: 80 MB in all, where the dict of interned names alone may take 8
MODEL = ModelSection.model_validate({"endpoint": {"url": "http://u", "model": "m", "check_images": False}})


class Talker:
    """Answers at length, the last first in each handful; refuses every 20th."""

    class backend:
        license = "MIT"

    class tally:
        @staticmethod
        def line(*_: float) -> str:
            return ""

    def answer(self, requests):
        some = []
        for request in requests:
            some.append(request)
            if len(some) == 5:
                yield from map(self._said, reversed(some))
                some = []
        yield from map(self._said, some)

    @staticmethod
    def _said(request) -> Answer:
        if int(request.id[1:]) % 20 == 7:
            return Answer(request, "k", Status.REJECTED, "m", kind="cut off", reason="too long")
        said = f"{request.id} " + "x" * LONG
        value = Mended.model_construct(fault="seen", answer=said) if request.schema is Mended else None
        return Answer(request, "k", Status.DONE, "m", said, value)


class Even:
    def judge(self, items):
        for item in items:
            number = int(item.id[1:])
            yield Verdict(item, None if number == 3 else (9.0, 1.0 + number % 9)[: len(item.answers)], error="none")


@pytest.fixture
def stubs(monkeypatch):
    @contextmanager
    def opened(*_, **__):
        yield Talker()

    @contextmanager
    def judge(*_):
        yield Even(), OrderBias()

    monkeypatch.setattr(asking, "open_asker", opened)
    monkeypatch.setattr(assessing, "open_judge", judge)


def test_a_round_of_long_answers_does_not_grow_with_them(stubs, tmp_path):
    write_items(tmp_path / "pool.jsonl", (Item(f"p{n}", f"what is {n}?", (f"{n}.png",)) for n in range(COUNT)))
    pool = open_items(tmp_path / "pool.jsonl")
    log = RejectedLog(tmp_path / "log.jsonl")
    tracemalloc.start()
    told = answered(MODEL, tmp_path, pool, Sampling(), log, 0, "teacher")
    said = answered(MODEL, tmp_path, told, Sampling(), log, 0, "student")
    outcomes, _ = assess(config(), tmp_path, told, Said(said), log)
    good = good_enough(config(), tmp_path, told, log)
    found = standing(outcomes)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 0.25 * COUNT * LONG  # holding them once would be all of it
    assert len(told) == len(outcomes) == 380
    assert [item.id for item in told[5:9]] == ["p5", "p6", "p8", "p9"]
    assert (told[0].answer[:3], told[0].model, told[0].answer_license) == ("p0 ", "m", "MIT")
    assert (outcomes[4].id, outcomes[4].scores, outcomes[4].kind) == ("p4", (9.0, 5.0), "hard")
    assert (outcomes[3].scores, outcomes[3].kind, outcomes[3].error) == (None, "unscored", "none")
    assert (found.scored, found.unscored, found.teacher) == (379, 1, 9.0)
    assert [item.id for item in good[:4]] == ["p0", "p1", "p2", "p4"]
    assert read_items(tmp_path / "pool.jsonl") == list(pool)


def test_mending_pairs_and_teaching_do_not_grow_with_long_answers(stubs, tmp_path, monkeypatch):
    mutual = config(feedback="mutual", teacher_training={"config": "t"})
    one = Competition(mutual, {"teacher_training": None}, tmp_path, lambda *_: None)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(training, "placed", lambda *_: None)
    monkeypatch.setattr(training, "trained", lambda *_: "learned")
    write_items(one._pool(0), (Item(f"p{n}", f"what is {n}?", (f"{n}.png",)) for n in range(COUNT)))
    long = "y" * LONG

    def outcomes(kind: Kind, scores: tuple[float, float]) -> Iterator[dict[str, Any]]:
        return (Outcome(f"p{n}", kind, "right", f"{n} {long}", scores).row() for n in range(COUNT))

    write_rows(one._folder(1) / "verdicts.jsonl", outcomes(Kind.HARD, (9.0, 1.0)))
    write_rows(one._folder(2) / "verdicts.jsonl", outcomes(Kind.WIN, (1.0, 9.0)))
    write_items(one._pool(1), open_items(one._pool(0)))
    tracemalloc.start()
    counts = one._refine(1, RefineSection())
    pairs = gathered([one._folder(1), one._folder(1)], one._folder(2))
    count = write_rows(one._folder(2) / "pairs.jsonl", pairs)
    winners = pairs_of(tmp_path, {"round": 1})["winners"]
    taught = one._teach(2)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 0.25 * COUNT * LONG
    mended = sum(n % 20 != 7 and n % 9 != 8 and n != 3 for n in range(COUNT))
    assert (counts["asked"], counts["kept"], count) == (COUNT, mended, COUNT)
    assert winners == {"refiner": mended, "teacher": COUNT - mended}
    assert taught == "learned"
    assert len(open_rows(one._folder(2) / "teaching.jsonl", lambda row, *_: row)) == COUNT


def test_what_is_put_in_any_order_is_read_by_its_number(tmp_path):
    spool = Spool(3)
    spool.put(2, {"é": [1]})
    spool.put(0, "a")
    spool.append(None)
    assert [spool.get(number) for number in range(4)] == ["a", None, {"é": [1]}, None]
    made = Made(range(10), lambda number: number * number)
    assert list(made[2:8:3]) == [4, 25]
    items = ById(Made([0, 1, 2], lambda number: Item(f"i{number % 2}", str(number), ())))
    assert (items["i0"].question, items["i1"].question, len(items), "i2" in items) == ("2", "1", 2, False)
