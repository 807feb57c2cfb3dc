"""Killed with SIGKILL at any moment and started again: the same records, and no kept reply is asked for again.

The runs are forked from the tests' fork server, which has imported everything once. MMKD_KILLS=100 kills as often.
"""

from __future__ import annotations

import json
import os
import random
import time
from multiprocessing import get_context

from mmkd.synthesis.programs.making.run import make_programs

KILLS = int(os.environ.get("MMKD_KILLS", "20"))
CALLS, QUESTIONS, AT_ONCE = 100, 20, 4  # of the config; as many calls can be on their way when a kill comes


def start(config):
    process = get_context("forkserver").Process(target=make_programs, args=(config,))
    process.start()
    return process


def ended(process) -> int:
    process.join()
    return process.exitcode


def kept(folder) -> set[str]:
    try:
        return {json.loads(line)["key"] for line in (folder / "asked" / "journal.jsonl").read_bytes().split(b"\n")[:-1]}
    except FileNotFoundError:
        return set()


def tried(folder) -> list[str]:
    try:
        return [json.loads(line)["key"] for line in (folder / "verdicts.jsonl").read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []


def test_killed_again_and_again_it_ends_with_the_same_records_and_asks_nothing_twice(config, writer, tmp_path):
    assert ended(start(config(tmp_path / "straight"))) == 0
    assert len(writer.asked) == CALLS
    straight, writer.delay = {key.rsplit("-", 1)[0] for _, _, key in writer.asked}, 0.02
    writer.asked.clear()
    draw, out, kills = random.Random(5), tmp_path / "killed", 0
    # While programs are asked for, and while they run: at so many replies and verdicts, and a moment later.
    for moment in sorted(draw.sample(range(CALLS + QUESTIONS - 8), KILLS)):
        process = start(config(out))
        asked, before, after = len(writer.asked), kept(out), draw.random() * 0.25
        while process.is_alive() and len(kept(out)) + len(tried(out)) < moment:
            time.sleep(0.005)
        time.sleep(after)
        process.kill()
        process.join()
        kills += process.exitcode != 0
        assert not before & {key.rsplit("-", 1)[0] for _, _, key in writer.asked[asked:]}
    assert kills >= 0.75 * KILLS  # on a busy machine it may end before the last moments are seen
    asked, before = len(writer.asked), kept(out)
    assert ended(start(config(out))) == 0
    assert not before & {key.rsplit("-", 1)[0] for _, _, key in writer.asked[asked:]}
    # Nothing is asked twice but what was on its way when a kill came.
    assert len(writer.asked) <= CALLS + kills * AT_ONCE
    assert {key.rsplit("-", 1)[0] for _, _, key in writer.asked} == straight
    for name in ("records.jsonl", "programs.jsonl", "writer.jsonl", "yield.json"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert len(tried(out)) == len(set(tried(out))) == QUESTIONS
