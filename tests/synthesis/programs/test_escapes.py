"""The escape suite: every attack of attacks.yaml, with the checker and without it, and attacks on the workers."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from mmkd.synthesis.programs import worker
from mmkd.synthesis.programs.executor import Execution
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.reasons import Reason, Stop, Verdict
from mmkd.synthesis.programs.runner import TRIES, Runner
from mmkd.synthesis.programs.server import ToolServer
from mmkd.synthesis.programs.tools import View

ATTACKS = yaml.safe_load(Path(__file__).with_name("attacks.yaml").read_text(encoding="utf-8"))
LIMIT = {Reason.TIME, Reason.MEMORY, Reason.RECURSION, Reason.OUTPUT, Reason.WORKER_DIED}
TIGHT = Limits(seconds=0.15)
CANARY = Path("/tmp/mmkd-escaped")
PICTURE = Image.new("RGB", (64, 64), (240, 240, 240))
PICTURE.paste((255, 0, 0), (10, 10, 30, 30))


@pytest.fixture(scope="module")
def tight():
    """A sandbox that lets a program compute for 0.15 s."""
    CANARY.unlink(missing_ok=True)
    with Runner(limits=TIGHT, executor=MontyExecutor(workers=1)) as runner:
        yield runner


def source(attack: dict) -> str:
    return attack["program"] if "program" in attack else f"def answer(image):\n    return {attack['do']}"


def held(found: Reason | None, expected: str) -> bool:
    if expected == "limit":
        return found in LIMIT
    return found is None if expected == "harmless" else found == expected


def test_there_are_more_than_a_hundred_attacks():
    assert len({attack["name"] for attack in ATTACKS}) == len(ATTACKS) > 200
    assert len({source(attack) for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["name"])
def test_every_attack_has_its_clear_verdict(tight, attack):
    began = time.monotonic()
    outcome = tight.run(source(attack), PICTURE)
    assert time.monotonic() - began < 20, "a hang"
    assert held(outcome.reason, attack["checked"]), (outcome.reason, outcome.message)
    assert (outcome.reason is None) == (outcome.verdict is Verdict.RAN)
    assert outcome.message or outcome.reason is None
    assert not CANARY.exists()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["name"])
def test_the_sandbox_holds_without_the_checker(tight, attack):
    server = ToolServer(tight.tools, View(PICTURE, tight.backends), TIGHT)
    done = tight.executor.execute(source(attack) + "\nanswer(image)\n", {"image": "image:0"}, server.call, TIGHT)
    assert held(done.reason, attack["bare"]), (done.reason, done.message, done.answer)
    text = str(done.answer)
    assert "root:" not in text  # /etc/passwd
    assert os.getcwd() not in text
    assert not CANARY.exists()


def test_after_all_that_the_sandbox_works(tight):
    assert tight.run("def answer(image):\n    return count(image, 'red')", PICTURE).answer == 1


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() in ("monty", "worker", "python")]


def test_a_killed_worker_costs_one_program():
    before = {child.pid for child in workers()}
    with MontyExecutor(workers=1) as executor:
        (one,) = [child for child in workers() if child.pid not in before]
        done: list[Execution] = []

        def run() -> None:
            limits = Limits(seconds=20)
            code = "ready()\nwhile True:\n    pass\n"
            done.append(executor.execute(code, {}, lambda name, args, kwargs: started.set(), limits))

        started = threading.Event()
        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(20)
        one.kill()
        thread.join(20)
        assert not thread.is_alive()
        assert done[0].reason is Reason.WORKER_DIED
        assert executor.execute("1 + 1", {}, lambda *call: None, Limits()).answer == 2
        (one,) = [child for child in workers() if child.pid not in before]
        one.kill()  # one that nobody uses
        runner = Runner(executor=executor)
        answers = [runner.run("def answer(image):\n    return count(image, 'red')", PICTURE) for _ in range(3)]
        assert [one.answer for one in answers] == [1, 1, 1]
    assert not [child for child in workers() if child.pid not in before]


class Unlucky:
    """An executor whose first runs end for `reason`, after a tool was called, through no fault of the program."""

    def __init__(self, executor: MontyExecutor, reason: Reason, times: int):
        self.executor, self.reason, self.left = executor, reason, times
        self.runs = 0

    def execute(self, code, inputs, call, limits) -> Execution:
        self.runs += 1
        done = self.executor.execute(code, inputs, call, limits)
        self.left -= 1
        return done if self.left < 0 else Execution(None, self.reason, "killed")

    def close(self) -> None: ...


@pytest.mark.parametrize("reason", TRIES)
def test_a_program_is_not_to_blame_for_a_worker_that_dies_or_a_machine_that_is_busy(tight, reason):
    program = "def answer(image):\n    return count(image, 'red')"
    executor = Unlucky(tight.executor, reason, TRIES[reason] - 1)
    outcome = Runner(executor=executor).run(program, PICTURE)
    assert (outcome.answer, outcome.reason, len(outcome.events)) == (1, None, 1)
    always = Unlucky(tight.executor, reason, 1000)  # the program's own doing, then
    assert Runner(executor=always).run(program, PICTURE).reason is reason
    assert always.runs == TRIES[reason]


def test_a_stopped_worker_is_replaced():
    """SIGSTOP: a worker that neither answers nor dies."""
    before = {child.pid for child in workers()}
    with MontyExecutor(workers=1) as executor:
        (one,) = [child for child in workers() if child.pid not in before]

        def call(name, args, kwargs):
            one.suspend()
            while one.status() != psutil.STATUS_STOPPED:  # its threads stop one after the other
                time.sleep(0.01)
            return 1

        began = time.monotonic()
        done = executor.execute("stop() + 1", {}, call, Limits(seconds=0.2))
        assert done.reason in (Reason.TIME, Reason.WORKER_DIED)
        assert time.monotonic() - began < 20
        assert executor.execute("1 + 1", {}, lambda *call: None, Limits()).answer == 2


@pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux only")
def test_workers_are_confined(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "abc")
    before = {child.pid for child in workers()}
    with MontyExecutor(workers=1) as executor:
        assert executor.execute("1", {}, lambda *call: None, Limits()).answer == 1  # it has started
        (one,) = [child for child in workers() if child.pid not in before]
        folder = Path("/proc", str(one.pid))
        assert (folder / "environ").read_bytes() == b""
        assert one.rlimit(resource.RLIMIT_FSIZE) == (0, 0)
        assert one.rlimit(resource.RLIMIT_CORE) == (0, 0)
        assert one.rlimit(resource.RLIMIT_AS)[1] <= 1 << 30
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert list(one.cwd().split("/"))[-1] == "empty"
        assert not list(Path(one.cwd()).iterdir())


# Confines itself as a worker does, tries each call, and prints what came of it: 0, or the number of the error.
TRIES_IT = """
import ctypes, json, os, resource, signal, socket, sys
sys.path.insert(0, {room!r})
import worker
parent, folder, mine = os.getppid(), {folder!r}, {folder!r} + "/file"
worker.limit(); worker.confine()
libc = ctypes.CDLL(None, use_errno=True)
def tried(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
def call(name, *given):
    def made():
        if libc.syscall(numbers[name], *given) < 0:
            raise OSError(ctypes.get_errno(), name)
    return made
numbers = {{"tkill": 200, "tgkill": 234, "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438,
           "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "process_vm_readv": 310, "process_vm_writev": 311,
           "openat2": 437, "creat": 85}}
how = (ctypes.c_uint64 * 3)(os.O_WRONLY, 0, 0)
refused = {{
    "socket": socket.socket, "fork": os.fork, "kill": lambda: os.kill(parent, 0),
    "tkill": call("tkill", parent, 0), "tgkill": call("tgkill", parent, parent, 0),
    "pidfd_open": call("pidfd_open", parent, 0), "pidfd_send_signal": call("pidfd_send_signal", 0, 0, 0, 0),
    "pidfd_getfd": call("pidfd_getfd", 0, 0, 0), "rt_sigqueueinfo": call("rt_sigqueueinfo", parent, 10, 0),
    "rt_tgsigqueueinfo": call("rt_tgsigqueueinfo", parent, parent, 10, 0),
    "process_vm_readv": call("process_vm_readv", parent, 0, 0, 0, 0, 0),
    "process_vm_writev": call("process_vm_writev", parent, 0, 0, 0, 0, 0),
    "prlimit": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
    "write": lambda: os.open(mine, os.O_WRONLY), "append": lambda: os.open(mine, os.O_WRONLY | os.O_APPEND),
    "read and write": lambda: os.open(mine, os.O_RDWR), "create": lambda: os.open(mine + "2", os.O_CREAT),
    "memory of the parent": lambda: os.open(f"/proc/{{parent}}/mem", os.O_RDWR),
    "truncate on opening": lambda: os.open(mine, os.O_TRUNC), "creat": call("creat", mine.encode(), 0o600),
    "truncate": lambda: os.truncate(mine, 0), "unlink": lambda: os.unlink(mine), "rename": lambda: os.rename(mine, "x"),
    "mkdir": lambda: os.mkdir(folder + "/new"), "rmdir": lambda: os.rmdir(folder), "chmod": lambda: os.chmod(mine, 0),
    "symlink": lambda: os.symlink(mine, folder + "/link"), "link": lambda: os.link(mine, folder + "/link"),
    "chown": lambda: os.chown(mine, os.getuid(), os.getgid()), "utime": lambda: os.utime(mine),
    "mkfifo": lambda: os.mkfifo(folder + "/fifo"), "xattr": lambda: os.setxattr(mine, "user.x", b"1"),
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19), "chroot": lambda: os.chroot("/"),
}}
allowed = {{
    "read": lambda: os.open(mine, os.O_RDONLY), "own limits": lambda: resource.getrlimit(resource.RLIMIT_CORE),
    "folder": os.getcwd, "list": lambda: os.listdir(folder),
}}
print(json.dumps([{{name: tried(what) for name, what in some.items()}} for some in (refused, allowed)]
                 + [tried(call("openat2", -100, mine.encode(), how, 24))]))
sys.stdout.flush()
os.abort()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64" or sys.platform != "linux", reason="calls by their numbers there")
def test_the_filter_refuses_what_reaches_other_processes_or_files_and_nothing_that_python_needs(tmp_path):
    """worker.py's confinement in a process of its own, which then tries."""
    (tmp_path / "file").write_text("kept")
    code = TRIES_IT.format(room=str(Path(worker.__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=False)
    refused, allowed, unread = json.loads(done.stdout)
    assert set(refused.values()) == {errno.EPERM}, refused
    assert set(allowed.values()) == {0}, allowed
    assert unread == errno.ENOSYS
    assert done.returncode == -signal.SIGABRT  # it may still end itself
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"file": "kept"}


def test_nothing_of_one_program_is_left_for_the_next(tight):
    executor = tight.executor
    assert executor.execute("import json\nleft = 1\njson.left = 2\nleft", {}, lambda *c: 1, TIGHT).reason in (
        None,
        Reason.RAISED,
    )
    assert executor.execute("left", {}, lambda *call: 1, TIGHT).reason is Reason.UNKNOWN_NAME


def test_tools_stop_a_program_in_the_middle_and_it_cannot_go_on(tight):
    def call(name, args, kwargs):
        raise Stop(Reason.TOOL_CALLS, "enough")

    code = "try:\n    tool()\nexcept BaseException:\n    pass\nfinally:\n    7\n7"
    done = tight.executor.execute(code, {}, call, TIGHT)
    assert (done.answer, done.reason, done.message) == (None, Reason.TOOL_CALLS, "enough")


def test_time_in_tools_counts_against_the_wall(tight):
    done = tight.executor.execute(
        "for i in range(30):\n    tool()\n1", {}, lambda *call: time.sleep(0.05), Limits(wall_seconds=0.2)
    )
    assert done.reason is Reason.TIME


@pytest.mark.slow
def test_memory_of_the_parent_stays_flat(runner):
    program = "def answer(image):\n    return [count(image, 'red'), len(find(image, 'thing')), exists(image, 'blue')]"
    process, sizes = psutil.Process(), []
    for number in range(4000):
        runner.run(program, PICTURE)
        if number % 1000 == 999:
            sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[0] < 8 * 2**20
