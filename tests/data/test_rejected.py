"""Rows that cannot be used are set aside, replaced, counted; too many stop the run."""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.config.schema import DataSection
from mmkd.data.collate import Collator
from mmkd.data.loader import BatchLoader, build_loader
from mmkd.data.rejected import BadRow, RejectedLog, summary
from mmkd.errors import ConfigError, DataError


def loader(path: Path, processor: Any, start: int = 0, rank: int = 0, world: int = 1, **data: Any) -> BatchLoader:
    section = DataSection(mixture=[{"source": "jsonl", "path": str(path)}], **{"max_length": 64, **data})
    return build_loader(
        section,
        processor,
        seed=0,
        batch_size=4,
        micro_batch_size=2,
        rank=rank,
        world_size=world,
        start_step=start,
        rejected=path.parent / "rejected.jsonl",
    )


def ids(batches: BatchLoader, count: int) -> list[list[str]]:
    return [batch["sample_ids"] for batch in islice(batches, count)]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path.parent / "rejected.jsonl").read_text().splitlines()]


@pytest.fixture
def mostly_good(record, records_file) -> Path:
    """60 rows of which 4 are bad in different ways."""
    records = [record(str(n), ("q", f"a{n}")) for n in range(60)]
    records[10] = record("empty", ("q", ""))
    records[20] = record("broken", ("q", "a"), images=[b"no picture"])
    records[30] = record("long", ("q" * 100, "a"))
    path = records_file(records)
    rows = path.read_text().splitlines()
    rows[40] = rows[40][:20]
    path.write_text("\n".join(rows))
    return path


def test_bad_rows_are_written_down_with_their_reason_and_the_run_goes_on(mostly_good, processor):
    seen = ids(loader(mostly_good, processor), 30)  # one epoch
    assert sum(map(len, seen)) == 60
    found = {line["index"]: line for line in lines(mostly_good)}
    assert sorted(found) == [10, 20, 30, 40]
    assert found[10]["id"] == "empty"
    assert found[10]["reason"] == "the answer in turn 1 is empty."
    assert "20-0.png is none of PNG" in found[20]["reason"]
    assert "data.max_length is 64" in found[30]["reason"]
    assert "records.jsonl, line 41: not JSON" in found[40]["reason"]
    assert {line["source"] for line in found.values()} == {"data.mixture[0] jsonl"}
    expected = {"empty answer": 1, "image unreadable": 1, "too long": 1, "unreadable row": 1}
    assert summary(mostly_good.parent / "rejected.jsonl") == expected


def test_what_replaces_a_bad_row_does_not_depend_on_ranks_or_on_what_was_read_before(mostly_good, processor):
    whole = ids(loader(mostly_good, processor), 60)  # two epochs, micro batches of two
    steps = [a + b for a, b in zip(whole[::2], whole[1::2])]
    ranks = [ids(loader(mostly_good, processor, rank=rank, world=2), 30) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks)] == steps
    for start in (1, 7, 22):
        assert ids(loader(mostly_good, processor, start=start), 2) == whole[2 * start : 2 * start + 2]


def test_a_resumed_run_does_not_write_a_row_down_twice(mostly_good, processor):
    ids(loader(mostly_good, processor), 30)
    first = lines(mostly_good)
    ids(loader(mostly_good, processor), 30)
    assert lines(mostly_good) == first


def test_workers_yield_the_same_batches_and_whole_lines(mostly_good, processor):
    plain = list(islice(loader(mostly_good, processor), 30))
    (mostly_good.parent / "rejected.jsonl").unlink()
    for one, other in zip(plain, islice(loader(mostly_good, processor, workers=2), 30)):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
    assert {line["index"] for line in lines(mostly_good)} == {10, 20, 30, 40}


def test_more_than_a_tenth_of_bad_rows_stops_the_run_with_counts_and_reasons(record, records_file, processor):
    path = records_file([record(str(n), ("q", "" if n % 3 == 0 else "a")) for n in range(100)])
    with pytest.raises(
        DataError, match=r"^\d+ of \d+ rows tried .* more than 10%; .*answer in turn 1 is empty"
    ) as error:
        ids(loader(path, processor), 50)
    tried = int(str(error.value).split()[2])
    assert tried >= 50
    assert str(path.parent / "rejected.jsonl") in str(error.value)


def test_an_error_in_a_worker_arrives_as_our_own_message_without_a_traceback(record, records_file, processor):
    path = records_file([record(str(n), ("q", "")) for n in range(5)])
    with pytest.raises(
        DataError, match=r"^source data.mixture\[0\] jsonl has no usable row; the reasons are in "
    ) as error:
        ids(loader(path, processor, workers=1), 1)
    assert "Traceback" not in str(error.value)


def test_workers_stop_at_once_after_an_error(record, records_file, processor):
    path = records_file([record(str(n), ("q", "")) for n in range(5)])
    gc.disable()  # a loader that an error's circle holds would wait for it, and its worker, no longer told, for 5 s
    try:
        batches = loader(path, processor, workers=1)
        try:
            ids(batches, 1)
            failed = False
        except DataError:
            failed = True
        assert failed
        (worker,) = batches._iterator._workers
        del batches
        assert not worker.is_alive()
    finally:
        gc.enable()


def test_few_bad_rows_at_the_very_start_do_not_stop_a_run(tmp_path):
    log = RejectedLog(tmp_path / "rejected.jsonl")
    for index in range(20):
        log.reject("s", index, str(index), BadRow("bad"))
    for _ in range(130):
        log.good()
    for index in range(20, 23):
        log.reject("s", index, str(index), BadRow("bad"))
    assert (log.seen, log.bad) == (153, 23)
    with pytest.raises(DataError, match="24 of 154 rows"):  # 24 > 0.1 * 154 + 2 * sqrt(0.1 * 154) = 23.2
        log.reject("s", 23, "23", BadRow("bad"))


def _rows_until_stopped(path: Path, share: float, seed: int) -> int | None:
    draw, log = random.Random(seed), RejectedLog(path / f"{share}-{seed}.jsonl")
    log.note = lambda *_: None  # saves 100,000 writes
    for index in range(2000):
        try:
            if draw.random() < share:
                log.reject("s", index, str(index), BadRow("bad"))
            else:
                log.good()
        except DataError:
            return index + 1
    return None


def test_chance_alone_does_not_stop_a_run_and_many_bad_rows_do_so_soon(tmp_path):
    """Each process of many counts for itself and after every row, so one stretch of bad luck in any would do."""
    processes = range(200)
    assert not any(_rows_until_stopped(tmp_path, 0.05, seed) for seed in processes)
    assert all((_rows_until_stopped(tmp_path, 0.5, seed) or 2000) <= 100 for seed in processes)
    assert _rows_until_stopped(tmp_path, 1.0, 0) == 50


def test_a_shortened_conversation_is_counted_and_is_not_a_bad_row(record, records_file, processor):
    path = records_file([record(str(n), ("q", "a"), ("q" * 40, "a")) for n in range(60)])
    batches = ids(loader(path, processor), 30)
    assert sorted(name for names in batches for name in names) == sorted(str(n) for n in range(60))
    assert summary(path.parent / "rejected.jsonl") == {"shortened": 60}
    assert lines(path)[0]["reason"] == "the last 1 questions were left out to fit data.max_length."


def _write_many(path: str, worker: int) -> None:
    log = RejectedLog(Path(path))
    for index in range(200):
        log.note(f"source {worker}", index, "x" * 50, BadRow("because " * 20))


def test_lines_of_processes_that_write_at_once_do_not_mix(tmp_path):
    path = tmp_path / "run" / "rejected.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(str(path), n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row["source"], row["index"]) for row in rows} == {(f"source {n}", i) for n in range(4) for i in range(200)}
    assert len(rows) == 800


def test_a_reason_in_whatever_letters_is_one_line(tmp_path):
    path = tmp_path / "rejected.jsonl"
    for _ in range(2):  # the second log finds what the first wrote
        RejectedLog(path).note("s", 1, "a", BadRow("it says a\u2028b\x85c", "kind"))
    assert summary(path) == {"kind": 1}
    assert path.read_text().count("\n") == 1


def test_half_a_character_is_set_aside_by_name_wherever_it_stands(record, records_file, processor):
    """JSON may hold half of a surrogate pair, which neither a tokenizer nor a file takes."""
    half = json.loads(r'"\ud83d"')
    records = [record(str(n), ("q", f"a{n}")) for n in range(60)]
    records[10] = record("question", (f"q {half}", "a"))
    records[20] = record("answer", ("q", f"a {half}"))
    records[30] = record("image", ("q", "a"), images=[f"{half}.png"])
    records[40] = record(f"id {half}", ("q", ""))
    records[50].turns[0].role = f"tool {half}"
    path = records_file(records)
    assert sum(map(len, ids(loader(path, processor), 30))) == 60
    found = {line["index"]: line for line in lines(path)}
    assert sorted(found) == [10, 20, 30, 40, 50]
    assert (found[10]["id"], found[10]["kind"]) == ("question", "broken text")
    assert found[10]["reason"] == "its text holds U+D83D, one half of a character; mend the row, or take it out."
    assert found[20]["kind"] == "broken text"
    assert found[40]["id"] == f"id {half}"


def test_half_a_character_in_a_rejected_answer_is_set_aside(record, processor):
    one = record("a", ("q", "good"))
    one.turns[1].rejected = json.loads(r'"bad \ud83d"')
    with pytest.raises(BadRow, match=r"U\+D83D, one half of a character"):
        Collator(processor, max_length=64, pairs=True).prepare(one)


def test_a_half_written_last_line_is_no_row(tmp_path):
    path = tmp_path / "rejected.jsonl"
    RejectedLog(path).note("s", 1, "a", BadRow("bad", "kind"))
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    assert summary(path) == {"kind": 1}


def test_cached_features_without_a_store_are_refused_and_not_ignored(record, records_file, processor):
    path = records_file([record("a", ("q", "a"))])
    with pytest.raises(ConfigError, match=r"data.cache_features is on"):
        loader(path, processor, cache_features=True)


def test_a_loader_can_be_sent_to_a_worker_that_is_not_a_fork(mostly_good, processor):
    """What spawn and forkserver do, the default from Python 3.14 on."""
    import pickle

    dataset = loader(mostly_good, processor).dataset
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert copy[[0, 1]]["sample_ids"] == dataset[[0, 1]]["sample_ids"]
