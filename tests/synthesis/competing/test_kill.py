"""Killed with SIGKILL at random moments and started again: the same records as of a run that nobody stopped.

MMKD_KILLS=20 kills as often.
"""

from __future__ import annotations

import os
import random
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmkd.synthesis.requests import Status
from mmkd.synthesis.store import Store

KILLS = int(os.environ.get("MMKD_KILLS", "8"))


def written(out: Path) -> dict[str, str]:
    """The final records: pools, verdicts, pairs, training rows, summary."""
    names = ("pool/*.jsonl", "given/*.jsonl", "round-*/*.jsonl", "rounds.jsonl", "rejected/*.jsonl")
    return {str(file.relative_to(out)): file.read_text() for name in names for file in sorted(out.glob(name))}


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_records(competition, start, oracle, tmp_path):
    warm = get_context("forkserver").Process(target=int)  # what it imports is no part of the time that is measured
    warm.start()
    warm.join()
    began = time.monotonic()
    mending = {"refine": {"tries": 2}, "preference_training": {"config": str(tmp_path / "preferring.yaml")}}
    mending |= {
        "augment": {"name": "grounded", "count": 10, "rewrite": {"endpoint": {"url": oracle, "model": "words"}}}
    }
    straight = start(competition("straight", **mending))
    straight.join(1200)
    assert straight.exitcode == 0
    seconds = time.monotonic() - began

    config, draw, kills = competition("killed", **mending), random.Random(), 0
    while True:
        process = start(config)
        process.join(draw.uniform(0.05, 4 / KILLS) * seconds if kills < KILLS else 1200)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= KILLS / 4  # it may end before it has been killed as often
    one, other = written(tmp_path / "straight"), written(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert "pool/1.jsonl" in one
    for name in one:
        assert other[name] == one[name], name
    assert one["round-2/pairs.jsonl"]
    assert one["pool/1.jsonl"].count('"writer": "words"') > 2
    for who in ("teacher", "student", "refine", "rewrite"):
        with Store(tmp_path / "killed" / "asked" / who) as store:
            final = [entry.key for entry in store.entries() if entry.status.final]
            assert len(final) == len(set(final)) > 0
            assert not [entry for entry in store.entries() if entry.status is Status.UNANSWERED]
