"""The bench of losses, on sizes that take seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.rows import read
from bench.token_losses import Case, chunked, main, naive, sides
from mmkd.objectives import CrossEntropy, ForwardKL


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch, root):
    monkeypatch.setenv("PYTHONPATH", str(root))


def test_both_ways_compute_one_loss_and_one_gradient():
    at = sides(Case(37, 301, 8, 16, 24))
    found = chunked(at, [CrossEntropy(8), ForwardKL(chunk=8)])
    expected = naive(at)
    torch.testing.assert_close(found, expected)
    of = (at.student, at.head.weight)
    torch.testing.assert_close(torch.autograd.grad(found, of), torch.autograd.grad(expected, of))


PEAK = """
import sys
import torch
from bench.token_losses import peak_bytes

size = int(sys.argv[1])
torch.ones(400 * 2**18).sum()  # 400 MiB, freed before

def work():
    for _ in range(2):
        torch.ones(size * 2**18).sum()

print(peak_bytes(work, "cpu") / 2**20)
"""


@pytest.mark.parametrize("size", [50, 200])
def test_the_peak_is_what_was_held_at_once_and_not_what_the_process_once_held(size):
    # In a process of its own, as the bench measures: one that ran other tests holds freed memory, which is used again.
    done = subprocess.run([sys.executable, "-c", PEAK, str(size)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(size, abs=10)


def test_memory_rows_say_that_chunks_are_flat_and_whole_logits_are_not_tried_beyond_the_limit(tmp_path):
    given = "memory --vocabularies 20000 --tokens 256 1024 --chunk 32 --width 16 --teacher-width 24 --limit 0.4"
    main(given.split(), tmp_path)
    found = {row.metric: row for row in read("token_loss_memory", tmp_path)}
    value = {metric: row.value for metric, row in found.items()}
    assert value["chunked@V=20,000 N=1,024"] < 1.2 * value["chunked@V=20,000 N=256"]
    block = 256 * 20_000 * 4 / 2**20
    assert 4 * block < value["naive@V=20,000 N=256"] < 9 * block
    assert "naive@V=20,000 N=1,024" not in value
    last = found["share_at_most@V=20,000 N=1,024"]
    assert last.against == "naive, 256 tokens"
    assert last.value < 1 / 3
    assert last.command == f"python -m bench.token_losses {given}"


def test_time_rows_hold_both_losses_and_their_ratio_round_by_round(tmp_path):
    main(
        ["time", "--vocabularies", "500", "--tokens", "64", "--chunk", "16", "--width", "16", "--rounds", "3"], tmp_path
    )
    found = {row.metric: row for row in read("token_loss_time", tmp_path)}
    assert set(found) == {
        f"{what}@V=500 N=64"
        for what in ("cross_entropy", "recomputed_cross_entropy", "forward_kl", "ratio", "ratio_to_recomputed")
    }
    assert found["ratio@V=500 N=64"].unit == "of cross_entropy"
    assert all(row.value > 0 and row.spread > 0 for row in found.values())
