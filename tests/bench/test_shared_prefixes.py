"""The bench of prompts that begin alike, on a few requests."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from bench import shared_prefixes
from bench.rows import read
from mmkd.synthesis.local import LocalModel


@pytest.mark.slow
def test_rows_hold_both_ways_and_only_one_of_them_reads_once(tmp_path, monkeypatch):
    kept, read_once = [], LocalModel._read_once

    def noted(self, inputs):
        found = read_once(self, inputs)
        kept.append("past_key_values" in found)
        return found

    monkeypatch.setattr(LocalModel, "_read_once", noted)
    asked = Namespace(batch_sizes=[2], count=4, rounds=2, threads=torch.get_num_threads(), results=tmp_path)
    shared_prefixes.main(asked)
    found = {row.metric: row for row in read("shared_prefixes", tmp_path)}
    assert set(found) == {f"{what}@batch=2" for what in ("each", "once", "ratio")}
    assert found["ratio@batch=2"].against == "every prompt read by itself"
    assert all(row.value > 0 for row in found.values())
    assert kept == [True] * (1 + 2 * 2)  # to warm up, and two batches in each turn of one way
