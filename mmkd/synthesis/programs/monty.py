"""Programs in pydantic-monty: a Python interpreter in Rust, in a pool of worker processes.

Driven step by step instead of with the library's own loop: so the only thing ever answered is a call of a tool. A
question for anything else (files, environment, clock, imports, installing packages, methods of host objects) ends the
program. No mounts, no OS handler and no importable modules exist.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mmkd.errors import ConfigError
from mmkd.synthesis.programs.container import Command
from mmkd.synthesis.programs.executor import Call, Execution
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.reasons import Reason, Stop
from mmkd.synthesis.programs.values import plain

GRACE = 0.5  # seconds after a limit before the worker is killed from outside
MOST_SECONDS = 60.0  # that a worker may be silent, whatever the limits say
CHECKOUTS = 200  # programs before a worker is replaced, so that nothing adds up in one

T = TypeVar("T")
_KINDS = {
    "TimeoutError": Reason.TIME,
    "MemoryError": Reason.MEMORY,
    "RecursionError": Reason.RECURSION,
    "NameError": Reason.UNKNOWN_NAME,
}


class MontyExecutor:
    """A pool of workers; a worker that dies or hangs costs one program and is replaced.

    Args:
        workers: processes, and so programs at a time.
        confine: put every worker into the confinement of worker.py. Linux only; elsewhere workers are plain processes.
        command: start workers by it instead, e.g. in containers (container.py).

    Raises: ConfigError where pydantic-monty is not installed, or its workers do not start.
    """

    def __init__(self, workers: int = 2, confine: bool = sys.platform == "linux", command: Command | None = None):
        try:
            import pydantic_monty
        except ImportError as error:
            raise ConfigError('programs: pydantic-monty is not installed. pip install "mmkd[data]"') from error
        self._monty = pydantic_monty
        self._folder = tempfile.TemporaryDirectory(prefix="mmkd-programs-")
        self._pool = pydantic_monty.Monty(
            binary_path=_launcher(Path(self._folder.name), command) if confine or command else None,
            min_processes=workers,
            max_processes=workers,
            request_timeout=MOST_SECONDS,
            max_checkouts_per_worker=CHECKOUTS,
            feed_duration_limit_grace=GRACE,
        )
        try:
            self._pool.__enter__()
        except (pydantic_monty.MontyError, OSError, RuntimeError) as error:
            self._folder.cleanup()
            raise ConfigError(f"programs: the sandbox's workers do not start: {error}") from error
        if command:
            tried = self.execute("1 + 1", {}, lambda *_: None, Limits(seconds=MOST_SECONDS))
            if tried.answer != 2:
                self.close()
                why = tried.message or f"1 + 1 gives {tried.answer}"
                raise ConfigError(f"programs: no worker comes of {' '.join(command.run)}: {why}")

    def __enter__(self) -> MontyExecutor:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.__exit__(None, None, None)
        self._folder.cleanup()

    def execute(self, code: str, inputs: dict[str, str], call: Call, limits: Limits) -> Execution:
        monty = self._monty
        try:
            with self._pool.checkout(
                limits={
                    "max_feed_duration_secs": limits.seconds,
                    "max_memory": limits.memory,
                    "max_recursion_depth": limits.recursion,
                    "max_suspensions": limits.tool_calls + 8,
                },
                os_policy={"sleep": "call_host", "datetime": "call_host", "random_start": {"seed": 0}},
            ) as session:
                return self._drive(session, code, inputs, call, limits)
        except Stop as stop:
            return Execution(None, stop.reason, stop.message)
        except monty.MontyCrashedError as error:
            timed_out = getattr(error, "timed_out", False)
            return Execution(None, Reason.TIME if timed_out else Reason.WORKER_DIED, _line(error))
        except monty.MontySyntaxError as error:
            return Execution(None, Reason.NOT_PYTHON, _line(error))
        except monty.MontyError as error:
            return _raised(error)
        except (OSError, RuntimeError) as error:  # no worker to be had, or one that breaks the protocol
            return Execution(None, Reason.WORKER_DIED, _line(error))

    def _drive(self, session: Any, code: str, inputs: dict[str, str], call: Call, limits: Limits) -> Execution:
        monty = self._monty
        deadline = time.monotonic() + limits.wall_seconds
        printed = monty.CollectString(max_bytes=limits.output)
        step = _crossing(lambda: session.feed_start(code, inputs=dict(inputs), print_callback=printed))
        while not isinstance(step, monty.MontyComplete):
            if time.monotonic() > deadline:
                raise Stop(Reason.TIME, f"it took more than {limits.wall_seconds:g} s, tools included.")
            if isinstance(step, monty.NameLookupSnapshot):
                raise Stop(Reason.UNKNOWN_NAME, f"{step.variable_name[:60]} is not defined.")
            if not isinstance(step, monty.FunctionSnapshot) or step.is_os_function or step.object_id is not None:
                name = getattr(step, "function_name", "a future")
                raise Stop(Reason.OUTSIDE, f"it asked for {str(name)[:60]}, which no program has.")
            value = call(*_crossing(partial(_asked, step)))
            step = _crossing(partial(step.resume, {"return_value": value}))
        answer = plain(_crossing(lambda: step.output), limits.output, "the answer", Reason.NOT_JSON)
        if answer is None:
            return Execution(None, Reason.NO_ANSWER, "it returned None.")
        return Execution(answer)


def _asked(step: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return step.function_name, step.args, step.kwargs


def _crossing(take: Callable[[], T]) -> T:
    """What `take` gives. What a program hands over may have no counterpart here, as a whole number of 5,000 digits."""
    try:
        return take()
    except (ValueError, OverflowError, RecursionError, MemoryError, TypeError) as error:
        raise Stop(Reason.BAD_ARGUMENT, _line(error)) from None


def _raised(error: Any) -> Execution:
    # Read from the text: making the exception itself would let a program choose which class is built here.
    text = _line(error)
    kind = text.partition(":")[0]
    return Execution(None, _KINDS.get(kind, Reason.RAISED), text)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _launcher(folder: Path, command: Command | None) -> str:
    """An executable that confines itself and becomes the monty worker, or that becomes the command.

    worker.py or contained.py under a first line that names this Python; by a short link, since a first line has no room
    for spaces or long paths.
    """
    from pydantic_monty._binary import find_monty_binary

    python, launcher = folder / "python", folder / "worker"
    python.symlink_to(sys.executable)
    if command:
        (folder / "command.json").write_text(json.dumps({"run": command.run, "stop": command.stop}), encoding="utf-8")
    else:
        (folder / "monty").symlink_to(find_monty_binary())
        (folder / "empty").mkdir()
    file = "contained.py" if command else "worker.py"
    source = Path(__file__).with_name(file).read_text(encoding="utf-8")
    launcher.write_text(f"#!{python} -IS\n{source}", encoding="utf-8")
    launcher.chmod(0o500)
    return str(launcher)
