"""Packing: every sample once, limits kept, few rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkd.data.packing import pack

samples = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(samples=samples, max_length=st.integers(100, 300), images_per_row=st.integers(3, 8))
def test_every_sample_stands_in_one_row_and_no_row_is_over_a_limit(samples, max_length, images_per_row):
    lengths, images = [s[0] for s in samples], [s[1] for s in samples]
    rows = pack(lengths, images, max_length, images_per_row)
    assert sorted(i for row in rows for i in row) == list(range(len(samples)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= max_length
        assert sum(images[i] for i in row) <= images_per_row
        assert row == sorted(row)
    assert rows == pack(lengths, images, max_length, images_per_row)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40))
def test_no_two_rows_would_fit_into_one(lengths):
    rows = pack(lengths, [0] * len(lengths), 100, 8)
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > 100


def test_the_image_cap_opens_a_new_row_where_tokens_would_still_fit():
    assert pack([10, 10, 10], [2, 2, 1], 100, 3) == [[0, 2], [1]]


def test_long_samples_are_placed_first():
    assert pack([40, 60, 60, 40], [0] * 4, 100, 1) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("length", "images"), [(101, 0), (5, 4)])
def test_a_sample_that_fits_into_no_row_is_an_error(length, images):
    with pytest.raises(ValueError, match="sample 1 has"):
        pack([5, length], [0, images], 100, 3)
