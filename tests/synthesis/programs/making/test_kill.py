"""Killed with SIGKILL at any moment and started again: the same records, and no kept reply is asked for again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import yaml

KILLS = 4


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
    assert len(writer.asked) == 100
    draw, kills, writer.delay = random.Random(5), 0, 0.02
    out = tmp_path / "killed"
    while True:
        process = start(tmp_path / "killed.yaml")
        asked, before = len(writer.asked), kept(out)
        # First while programs are asked for, then while they run.
        while process.poll() is None and len(kept(out)) == len(before) < 100 and not tried(out):
            time.sleep(0.005)
        if kills < KILLS:
            time.sleep(draw.random() * 0.25)
            process.kill()
        ended = process.communicate()[0]
        assert not before & {key.rsplit("-", 1)[0] for _, _, key in writer.asked[asked:]}
        if ended:
            break
        kills += 1
    assert kills == KILLS
    names = ("records.jsonl", "programs.jsonl", "yield.json", "rejected.jsonl")
    for name in names[:3]:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert len(tried(out)) == len(set(tried(out))) == 20
