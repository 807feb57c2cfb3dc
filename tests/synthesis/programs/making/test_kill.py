"""Killed with SIGKILL at any moment and started again: the same records, and no kept reply is asked for again.

MMKD_KILLS=20 kills as often, spread over the whole run; fewer by default.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import yaml

KILLS = int(os.environ.get("MMKD_KILLS", "4"))
CALLS, QUESTIONS, AT_ONCE = 100, 20, 4  # of the config; as many calls can be on their way when a kill comes


def start(file) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmkd", "programs", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ))


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
    for name in ("straight", "killed"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config(tmp_path / name).model_dump(exclude_none=True)))
    assert start(tmp_path / "straight.yaml").communicate()[0].startswith(str(tmp_path))
    assert len(writer.asked) == CALLS
    straight, writer.delay = {key.rsplit("-", 1)[0] for _, _, key in writer.asked}, 0.02
    writer.asked.clear()
    draw, out = random.Random(5), tmp_path / "killed"
    # While programs are asked for, and while they run: at so many replies and verdicts, and a moment later.
    for moment in sorted(draw.sample(range(CALLS + QUESTIONS - 8), KILLS)):
        process = start(tmp_path / "killed.yaml")
        asked, before, after = len(writer.asked), kept(out), draw.random() * 0.25
        while process.poll() is None and len(kept(out)) + len(tried(out)) < moment:
            time.sleep(0.005)
        time.sleep(after)
        assert process.poll() is None, "it was over before it could be killed"
        process.kill()
        process.communicate()
        assert not before & {key.rsplit("-", 1)[0] for _, _, key in writer.asked[asked:]}
    asked, before = len(writer.asked), kept(out)
    assert start(tmp_path / "killed.yaml").communicate()[0].startswith(str(out))
    assert not before & {key.rsplit("-", 1)[0] for _, _, key in writer.asked[asked:]}
    # Nothing is asked twice but what was on its way when a kill came.
    assert len(writer.asked) <= CALLS + KILLS * AT_ONCE
    assert {key.rsplit("-", 1)[0] for _, _, key in writer.asked} == straight
    for name in ("records.jsonl", "programs.jsonl", "writer.jsonl", "yield.json"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert len(tried(out)) == len(set(tried(out))) == QUESTIONS
