"""What a rank does when another rank, or the launcher, dies: say who, say how to go on, and leave no process behind.

A rank that waits for a dead one fails in its next exchange with an error of the network, or is ended by the launcher
before that; and ranks whose launcher was killed would train on, unseen. All three end here with one message.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
from safetensors import SafetensorError

from mmkd.errors import DataError, TrainingError

LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run", "accelerate"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOST_SECONDS = 1.0  # how long a rank waits to see which other one died
# What gloo and NCCL say when the other end of a connection is gone.
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting", "nccl error")


class Watch:
    """A context around training.

    Args:
        rank, world: of this process.
        going_on: says which checkpoint there is and how to go on from it.

    Raises: on leaving, TrainingError in place of an error that only says that another rank is gone, or that the disk
        is full; errors of training and data with how to go on.
    """

    def __init__(self, rank: int, world: int, going_on: Callable[[], str]):
        self.rank, self.world, self.going_on = rank, world, going_on
        self.pid = os.getpid()
        self.pids: list[int] = []  # of all ranks
        self.peers: dict[int, psutil.Process | None] = {}  # of this machine's; None was dead before it was looked at
        self.launchers = launchers()
        self.left = threading.Event()
        self.previous: Any = None

    def __enter__(self) -> Watch:
        if self.world > 1:
            import torch.distributed as dist

            found: list[Any] = [None] * self.world
            here = socket.gethostname()
            dist.all_gather_object(found, (here, self.pid))
            self.pids = [pid for _, pid in found]
            self.peers = {rank: process_of(pid) for rank, (host, pid) in enumerate(found) if host == here}
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._ended)
        if self.launchers:
            threading.Thread(target=self._mind_launchers, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Looked for before SIGTERM is handed back: the launcher may send it meanwhile.
        lost = self._who_died() if self.world > 1 and is_lost(error) else None
        self.left.set()
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
        if lost is not None:
            raise TrainingError(f"rank {self.rank}: {lost} {self.going_on()}") from error
        if isinstance(error, OSError) and error.errno in FULL:
            place = f" ({error.filename})" if error.filename else ""
            raise TrainingError(f"{error.strerror}{place}: make room. {self.going_on()}") from error
        if isinstance(error, SafetensorError):  # it wraps what the system says
            raise TrainingError(f"a file could not be read or written ({error}). {self.going_on()}") from error
        if isinstance(error, (TrainingError, DataError)):
            raise type(error)(f"{error} {self.going_on()}") from error

    def _who_died(self) -> str:
        # A killed process closes its connections a moment before it counts as dead; on a busy machine that is long.
        until = time.monotonic() + LOST_SECONDS
        while not (dead := self._dead()) and time.monotonic() < until:
            time.sleep(0.05)
        if dead:
            names = ", ".join(f"rank {rank} (process {self.pids[rank]})" for rank in dead)
            return f"{names} died; its own messages, if any, stand above."
        return (
            "another rank cannot be reached any more: it stopped with an error, hangs, or its machine is gone. (One "
            "that is only slower is waited for: two hours, or the minutes in DEEPSPEED_TIMEOUT.)"
        )

    def _dead(self) -> list[int]:
        """Ranks of this machine that live no more."""
        return [rank for rank, process in self.peers.items() if not alive(process)]

    def _ended(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: from the launcher, once a rank has died, or from outside."""
        if os.getpid() != self.pid:  # a data worker, forked with this handler
            os._exit(128 + number)
        dead = self._dead()
        if all(rank in dead for rank in range(self.rank)):  # one message, of the first rank that lives
            self._say(f"rank {self.rank} was ended: {self._who_died() if dead else 'SIGTERM was sent.'}")
        time.sleep(0.5)  # ranks ended with this one look for the dead now, and shall not find it among them
        self._leave(128 + number)

    def _mind_launchers(self) -> None:
        while not self.left.wait(1.0):
            for launcher in self.launchers:
                if not alive(launcher):
                    self._say(f"rank {self.rank} stops: its launcher (process {launcher.pid}) died.")
                    self._leave(1)

    def _say(self, what: str) -> None:
        sys.stderr.write(f"{what} {self.going_on()}\n")
        sys.stderr.flush()

    def _leave(self, code: int) -> None:
        for child in psutil.Process(self.pid).children(recursive=True):  # data workers
            child.kill()
        os._exit(code)


def launchers() -> list[psutil.Process]:
    """The launcher's processes above this one: as long as their command lines name one."""
    found = []
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            break
        if not any(Path(word).name in LAUNCHERS for word in words[:4]):  # python, its options, script or module
            break
        found.append(parent)
    return found


def is_lost(error: BaseException | None) -> bool:
    """True for an error which only says that another rank cannot be reached."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LOST)


def process_of(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def alive(process: psutil.Process | None) -> bool:
    """Whether it runs still; another one of its number is not it. psutil tells them apart by ticks since the machine
    started: times of day, as `create_time` has them, move with every step of the clock."""
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
