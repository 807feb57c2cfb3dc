"""Killed with SIGKILL at random moments and started again: the same records as of a run that nobody stopped, and no
reply that was kept is asked for again.

MMKD_KILLS=20 kills as often.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmkd.synthesis.requests import Status
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy, Seen
from tests.synthesis.kept_calls import kept_calls

KILLS = int(os.environ.get("MMKD_KILLS", "8"))
ON_THEIR_WAY = 16  # calls at once, and so the most that a kill costs


def wanted(seen: Sequence[Seen]) -> set[str]:
    """The calls, but for those that find out whether a server reads pictures: a question without its own. Which one it
    is depends on when a run was killed."""

    def parts(one: Seen, kind: str) -> list[str]:
        contents = [message["content"] for message in one.body["messages"]]
        lists = [[{"type": "text", "text": said}] if isinstance(said, str) else said for said in contents]
        return [str(part) for part in chain(*lists) if part["type"] == kind]

    pictured = {str(parts(one, "text")) for one in seen if parts(one, "image_url")}
    return {one.call for one in seen if parts(one, "image_url") or str(parts(one, "text")) not in pictured}


def written(out: Path) -> dict[str, str]:
    """The final records: pools, verdicts, pairs, training rows, summary."""
    names = ("pool/*.jsonl", "given/*.jsonl", "round-*/*.jsonl", "rounds.jsonl", "rejected/*.jsonl")
    return {str(file.relative_to(out)): file.read_text() for name in names for file in sorted(out.glob(name))}


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_records_and_pays_no_reply_twice(
    competition, start, oracle, tmp_path, record_property
):
    warm = get_context("forkserver").Process(target=int)  # what it imports is no part of the time that is measured
    warm.start()
    warm.join()
    with FaultProxy(oracle) as proxy:
        served = {"endpoint": {"url": proxy.url, "model": "oracle", "license": "MIT"}}
        mending = {
            "teacher": served,
            "judge": {"model": served},
            "refine": {"tries": 2},
            "preference_training": {"config": str(tmp_path / "preferring.yaml")},
            "augment": {"name": "grounded", "count": 10, "rewrite": {"endpoint": {"url": proxy.url, "model": "words"}}},
        }
        began = time.monotonic()
        straight = start(competition("straight", **mending))
        straight.join(1200)
        assert straight.exitcode == 0
        seconds, needed = time.monotonic() - began, len(proxy.seen)
        replies = len(kept_calls(tmp_path / "straight" / "asked"))

        config, draw, kills = competition("killed", **mending), random.Random(), 0
        while True:
            before, kept_before = len(proxy.seen), kept_calls(tmp_path / "killed" / "asked")
            process = start(config)
            # Up to twice an even part of what is left, by the replies that came.
            part = seconds * (1 - len(kept_before) / replies) / (KILLS - kills + 1)
            process.join(part * draw.uniform(0.1, 1.9) if kills < KILLS else 1200)
            ended = process.exitcode
            process.kill()
            process.join()
            assert not kept_before & {seen.call for seen in proxy.seen[before:]}  # the point of it all
            if ended is not None:
                assert ended == 0
                break
            kills += 1
        assert kills >= 0.75 * KILLS  # it may end before it has been killed as often
        # No more than what was on its way at a kill was answered in vain.
        assert needed <= len(proxy.seen) - needed <= needed + kills * ON_THEIR_WAY
        # It is sent again under its own Idempotency-Key, and nothing else.
        assert wanted(proxy.seen[needed:]) == wanted(proxy.seen[:needed])
        record_property("kills", kills)
        record_property("replies", replies)
        record_property("asked_again", len(proxy.seen) - 2 * needed)
        before = len(proxy.seen)
        again = start(config)  # all is there, nothing is asked
        again.join(600)
        assert (again.exitcode, len(proxy.seen)) == (0, before)
    one, other = written(tmp_path / "straight"), written(tmp_path / "killed")
    assert one.keys() == other.keys()
    record_property("equal_files", len(one))
    assert "pool/1.jsonl" in one
    for name in one:
        assert other[name] == one[name], name
    assert one["round-2/pairs.jsonl"]
    assert one["pool/1.jsonl"].count('"writer": "words"') > 2
    for who in ("teacher", "student", "judge", "refine", "rewrite"):
        with Store(tmp_path / "killed" / "asked" / who) as store:
            assert [entry for entry in store.entries() if entry.status.final]
            assert not [entry for entry in store.entries() if entry.status is Status.UNANSWERED]
