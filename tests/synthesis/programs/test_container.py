"""Workers that another program starts, as a container engine does: they work, end with their owner, and if they turn
against it cost a program and nothing else. No engine is needed: plain processes and namespaces stand for containers."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest
from PIL import Image
from pydantic_monty._binary import find_monty_binary

from mmkd.config.programs_schema import ContainerSection
from mmkd.errors import ConfigError
from mmkd.synthesis.programs.container import Command, container
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Reason
from mmkd.synthesis.programs.runner import Runner

MONTY = find_monty_binary()
PICTURE = Image.new("RGB", (64, 64), (240, 240, 240))
PICTURE.paste((255, 0, 0), (10, 10, 30, 30))
COUNT = "def answer(image):\n    return count(image, 'red')"

# A worker that plays by the rules until a program says BETRAY: it passes on what monty says, and then does the rest.
TURNCOAT = """
import os, struct, subprocess, sys, threading, time
monty = subprocess.Popen([sys.argv[1], *sys.argv[3:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
turned = threading.Event()
def out(data):
    os.write(1, data)
def inwards():
    while data := os.read(0, 65536):
        if b"BETRAY" in data:
            turned.set()
        monty.stdin.write(data); monty.stdin.flush()
    monty.kill(); os._exit(0)
threading.Thread(target=inwards, daemon=True).start()
while data := os.read(monty.stdout.fileno(), 65536):
    if turned.is_set():
        {act}
        turned.clear()
    out(data)
"""
ACTS = {
    "dies": "os._exit(3)",
    "hangs": "time.sleep(600)",
    "speaks nonsense": "out(struct.pack('<I', 20) + b'{not a message}'.ljust(20)); time.sleep(600)",
    "announces 4 GB": "out(struct.pack('<I', 0xfffffff0)); [out(bytes(65536)) for _ in range(100000)]",
    "floods": "[out(bytes(65536)) for _ in range(100000)]",
    "says the same again and again": "[out(data) for _ in range(100000)]",
    "says half": "out(data[:len(data) // 2]); os._exit(0)",
    "asks for a tool that is none": "data = data.replace(b'count', b'c0unt')",
    "asks for another tool": "data = data.replace(b'count', b'depth')",
    "forges a handle": "data = data.replace(b'image:0', b'thing:9')",
}
WHY = {
    "hangs": Reason.TIME,
    "asks for a tool that is none": Reason.UNKNOWN_NAME,
    "asks for another tool": Reason.UNKNOWN_NAME,  # none of those that are offered
    "forges a handle": Reason.BAD_ARGUMENT,
}


def turncoat(act: str) -> Command:
    # The third argument only names it.
    return Command((sys.executable, "-c", TURNCOAT.replace("{act}", ACTS[act]), MONTY, "{name}"))


def test_programs_run_by_a_command_as_they_do_without():
    with Runner(executor=MontyExecutor(1, command=Command((MONTY,)))) as runner:
        assert runner.run(COUNT, PICTURE).answer == 1
        assert runner.run("def answer(image):\n    return [][1]", PICTURE).reason is Reason.RAISED


@pytest.mark.skipif(
    sys.platform != "linux" or subprocess.run(["unshare", "-Urnpf", "true"], capture_output=True).returncode != 0,
    reason="no namespaces for ordinary users here",
)
def test_a_worker_in_namespaces_of_its_own_runs_programs_and_is_replaced():
    command = Command(("unshare", "--user", "--net", "--pid", "--fork", "--kill-child", MONTY))
    with Runner(executor=MontyExecutor(1, command=command), limits=Limits(seconds=0.2)) as runner:
        assert runner.run(COUNT, PICTURE).answer == 1
        endless = "def answer(image):\n    for n in range(10**12):\n        n\n    return 1"
        assert runner.run(endless, PICTURE).reason is Reason.TIME
        assert runner.run(COUNT, PICTURE).answer == 1


@pytest.mark.parametrize("act", ACTS)
def test_a_worker_that_turns_against_its_owner_costs_one_program(act):
    limits = Limits(seconds=0.3)
    memory = psutil.Process().memory_info().rss
    with Runner(executor=MontyExecutor(1, command=turncoat(act)), limits=limits) as runner:
        assert runner.run(COUNT, PICTURE).answer == 1
        began = time.monotonic()
        outcome = runner.run(COUNT + " + len('BETRAY') - 6", PICTURE)
        assert time.monotonic() - began < 10
        why = {WHY.get(act, Reason.WORKER_DIED)}
        if act == "says the same again and again":  # a call of a tool each time, if a read ends where a message does
            why.add(Reason.TOOL_CALLS)
        assert outcome.reason in why, (outcome.reason, outcome.message)
        assert runner.run(COUNT, PICTURE).answer == 1
    assert psutil.Process().memory_info().rss - memory < 100 * 2**20


def test_what_the_owner_kills_is_stopped_by_its_own_command_too(tmp_path):
    """As a container is, which does not go when its client is killed."""
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    script = "import pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[2]).touch()"
    command = Command((MONTY,), (sys.executable, "-c", script, str(stopped), "{name}"))
    before = {child.pid for child in psutil.Process().children()}
    with MontyExecutor(1, command=command) as executor:
        assert not list(stopped.iterdir())
        (worker,) = [child for child in psutil.Process().children() if child.pid not in before]
        worker.kill()
        assert wait_for(lambda: len(list(stopped.iterdir())) == 1)
        executor.execute("1 + 1", {}, lambda *_: None, Limits())  # finds out
        assert executor.execute("1 + 1", {}, lambda *_: None, Limits()).answer == 2
    assert wait_for(lambda: len(list(stopped.iterdir())) == 2)
    assert all(file.name.startswith("mmkd-") for file in stopped.iterdir())


def wait_for(what, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def test_a_command_that_starts_no_worker_is_told():
    with pytest.raises(ConfigError, match="no worker comes of false"):
        MontyExecutor(1, command=Command(("false",)))


def test_a_container_is_locked_down(tmp_path, monkeypatch):
    (tmp_path / "podman").write_text("#!/bin/sh\n")
    (tmp_path / "podman").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = container(ContainerSection(image="local/monty", engine="podman", memory=256, cpus=0.5))
    run = " ".join(command.run)
    for said in (
        "--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--pids-limit 32",
        "--memory 256m", "--memory-swap 256m", "--cpus 0.5", "--user 65534:65534", "--tmpfs /tmp:", "--name {name}",
    ):  # fmt: skip
        assert said in run
    assert run.startswith("podman run --rm --interactive")
    assert run.endswith(" local/monty")
    assert not {"--volume", "-v", "--mount", "--privileged", "--env", "-e"} & set(command.run)
    assert command.stop == ("podman", "kill", "{name}")
    with pytest.raises(ConfigError, match="docker is not on PATH"):
        container(ContainerSection(image="local/monty"))
