"""The order of samples is a pure function of seed and index."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkd.data.mixture import BLOCK, Mixture, StepSampler
from mmkd.data.records import Record, Turn
from mmkd.errors import ConfigError


def source(name: str, length: int) -> list[Record]:
    return [Record(f"{name}{i}", [Turn("user", "?"), Turn("assistant", "!")]) for i in range(length)]


def steps(batch: int, micro: int, world: int, start: int, count: int) -> list[list[int]]:
    """Indices of each of `count` steps, all ranks together, in rank order."""
    micros = batch // world // micro
    ranks = [list(islice(StepSampler(batch, micro, rank, world, start), count * micros)) for rank in range(world)]
    return [
        [index for rank in ranks for indices in rank[step * micros : (step + 1) * micros] for index in indices]
        for step in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(micro=st.integers(1, 4), accumulation=st.integers(1, 4), world=st.integers(1, 4), start=st.integers(0, 1000))
def test_step_s_is_the_same_samples_for_any_ranks_accumulation_and_resume(micro, accumulation, world, start):
    batch = micro * accumulation * world
    found = steps(batch, micro, world, start, count=3)
    assert found == [list(range(s * batch, (s + 1) * batch)) for s in range(start, start + 3)]


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(ConfigError, match=r"batch_size 10 .* micro batches of 2 on 2 ranks; a multiple of 4"):
        StepSampler(10, 2, 0, 2)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    indices=st.lists(st.integers(0, 5 * BLOCK), min_size=1, max_size=30),
)
def test_what_stands_at_an_index_does_not_depend_on_what_was_read_before(lengths, seed, indices):
    sources = [source(f"s{n}-", length) for n, length in enumerate(lengths)]
    weights = [None] * len(lengths)
    used = Mixture(sources, weights, seed)
    for index in indices:
        assert used.place(index) == Mixture(sources, weights, seed).place(index)


@settings(max_examples=10, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    start=st.integers(0, 2 * BLOCK),
    seed=st.integers(0, 1000),
)
def test_every_source_is_visited_whole_once_an_epoch(weights, start, seed):
    lengths = [7 + 5 * n for n in range(len(weights))]
    mixture = Mixture([source(str(n), length) for n, length in enumerate(lengths)], weights, seed)
    rows: dict[int, list[int]] = {n: [] for n in range(len(weights))}
    for index in range(1000):
        number, row = mixture.place(index)
        rows[number].append(row)
    for number, seen in rows.items():
        length = lengths[number]
        for first in range(0, len(seen) - length + 1, length):
            assert sorted(seen[first : first + length]) == list(range(length))
    # and further on, index after index goes on where it was
    places = [mixture.place(index) for index in range(start, start + 20)]
    assert places == [Mixture(mixture.sources, weights, seed).place(index) for index in range(start, start + 20)]


def test_a_source_goes_on_in_its_epoch_where_one_block_ends_and_the_next_begins():
    lengths = [7, 13]
    mixture = Mixture([source("a", 7), source("b", 13)], [2.0, 1.0], seed=9)
    rows: list[list[int]] = [[], []]
    for index in range(2 * BLOCK + 500):
        number, row = mixture.place(index)
        rows[number].append(row)
    for seen, length in zip(rows, lengths):
        whole = range(0, len(seen) - length + 1, length)
        assert all(sorted(seen[first : first + length]) == list(range(length)) for first in whole)


def test_epochs_and_seeds_have_different_orders():
    records = source("a", 100)

    def epoch(seed: int, number: int) -> list[int]:
        return [Mixture([records], [None], seed).place(i)[1] for i in range(100 * number, 100 * number + 100)]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), list(range(100))]
    assert len({tuple(order) for order in orders}) == 4


def test_shares_are_exact_in_every_block_and_the_smallest_weight_still_appears():
    sources = [source("a", 10), source("b", 10), source("c", 10)]
    mixture = Mixture(sources, [3.0, 1.0, 1e-9], seed=5)
    for block in (0, 7):
        counts = Counter(mixture.place(i)[0] for i in range(block * BLOCK, (block + 1) * BLOCK))
        assert counts == {0: 7499, 1: 2500, 2: 1}
    # not only in the long run: any thousand samples are close to their shares
    counts = Counter(mixture.place(i)[0] for i in range(2000, 3000))
    assert abs(counts[0] - 750) < 60


def test_without_weights_shares_are_the_lengths():
    mixture = Mixture([source("a", 30), source("b", 10)], [None, None], seed=0)
    assert mixture.quotas == [7500, 2500]


def test_weights_for_only_some_sources_are_refused():
    with pytest.raises(ConfigError, match="1 of 2 sources have a weight"):
        Mixture([source("a", 3), source("b", 3)], [1.0, None], seed=0)


def test_the_billionth_sample_is_found_without_walking_there():
    mixture = Mixture([source("a", 1000), source("b", 10)], [1.0, 1.0], seed=0)
    number, row = mixture.place(10**9)
    assert 0 <= row < len(mixture.sources[number])
    assert len(mixture._orders) <= 2


def test_replacements_are_the_other_rows_of_the_same_source_each_once():
    mixture = Mixture([source("a", 20), source("b", 5)], [1.0, 1.0], seed=3)
    for index in (0, 1, 17, BLOCK + 3):
        found = list(mixture.candidates(index))
        assert found[0] == mixture.place(index)
        number = found[0][0]
        assert sorted(found) == [(number, row) for row in range(len(mixture.sources[number]))]


def test_the_order_never_changes_between_versions():
    """Written down once: a resumed run must go on in the order in which it began."""
    mixture = Mixture([source("a", 10), source("b", 5)], [2.0, 1.0], seed=42)
    assert " ".join(mixture[i].id for i in range(12)) == "a8 a7 a3 a9 b1 b2 b0 a6 a1 a2 a0 a5"


def test_a_mixture_can_be_sent_to_a_worker():
    mixture = Mixture([source("a", 10), source("b", 5)], [2.0, 1.0], seed=42)
    places = [mixture.place(i) for i in range(30)]
    copy = pickle.loads(pickle.dumps(mixture))  # noqa: S301 - what a spawned loader worker does
    assert [copy.place(i) for i in range(30)] == places


def test_the_loader_yields_one_order_for_one_and_two_ranks_and_after_a_resume(processor, record, records_file):
    from mmkd.config.schema import DataSection
    from mmkd.data.loader import build_loader

    path = records_file([record(str(i), (f"q{i}?", f"a{i}")) for i in range(11)])
    data = DataSection(mixture=[{"source": "jsonl", "path": str(path)}], max_length=64)

    def ids(rank: int, world: int, micro: int, start: int, count: int) -> list[list[str]]:
        loader = build_loader(
            data,
            processor,
            seed=1,
            batch_size=4,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            start_step=start,
            rejected=Path(path.parent, "rejected.jsonl"),
        )
        return [batch["sample_ids"] for batch in islice(loader, count)]

    whole = ids(0, 1, 4, 0, 6)
    assert [a + b for a, b in zip(*[iter(ids(0, 1, 2, 0, 12))] * 2)] == whole
    assert [a + b for a, b in zip(ids(0, 2, 2, 0, 6), ids(1, 2, 2, 0, 6))] == whole
    assert ids(0, 1, 4, 4, 2) == whole[4:]
