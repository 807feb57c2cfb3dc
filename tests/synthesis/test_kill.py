"""Killed with SIGKILL at any moment and started again: nothing that was paid and kept is asked again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmkd.synthesis.requests import Status
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy

COUNT, KILLS = 150, 3


def start(url: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("killed_asker.py")), url, str(folder), str(COUNT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout.readline() == "ready\n"
    return process


def kept(folder: Path) -> list[str]:
    """Calls whose reply stands in the journal, as the proxy names them: key and number of the try."""
    tries: dict[str, int] = {}
    calls = []
    for line in (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]:
        key = json.loads(line)["key"]
        calls.append(f"{key}-{tries.get(key, 0)}")
        tries[key] = tries.get(key, 0) + 1
    return calls


@pytest.mark.slow
def test_killed_again_and_again_it_pays_for_no_kept_reply_twice(served, tmp_path):
    draw = random.Random(1)

    def fault(number, body) -> str:
        return draw.choice(["500", "cut", "empty", "not json"]) if draw.random() < 0.1 else ""

    kills = 0
    with FaultProxy(served, fault=fault, delay=0.02) as proxy:
        while True:
            process = start(proxy.url, tmp_path / "killed")
            seen_before, kept_before = len(proxy.seen), set(kept(tmp_path / "killed"))
            more = draw.randint(5, 40) if kills < KILLS else COUNT * 9
            while process.poll() is None and len(proxy.seen) < seen_before + more:
                time.sleep(0.002)
            process.kill()
            ended = process.communicate()[0]
            assert not kept_before & {seen.call for seen in proxy.seen[seen_before:]}  # the point of it all
            if "finished" in ended:
                break
            kills += 1
        assert kills == KILLS
        charged = [seen.call for seen in proxy.seen if seen.whole]
        with Store(tmp_path / "killed") as store:
            final = [entry for entry in store.entries() if entry.status.final]
            assert len(final) == len({entry.key for entry in final}) == COUNT
            # Replies on their way at a kill are all that can have been made in vain.
            assert len(charged) - len(list(store.entries())) <= kills * 6
            done = {entry.request["id"]: entry.text for entry in final if entry.status is Status.DONE}
        straight = start(served, tmp_path / "straight")
        assert "finished" in straight.communicate()[0]
    with Store(tmp_path / "straight") as store:
        clean = {entry.request["id"]: entry.text for entry in store.entries(status=Status.DONE)}
    assert {name: clean[name] for name in done.keys() & clean.keys()} == {
        n: done[n] for n in done.keys() & clean.keys()
    }
    assert len(done.keys() & clean.keys()) > COUNT / 2
