"""Sandbox workers in containers: the command line that starts one, locked down, and the one that stops it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from mmkd.config.programs_schema import ContainerSection
from mmkd.errors import ConfigError


@dataclass(frozen=True)
class Command:
    """How a worker is started by another program. "{name}" stands for a name that no other worker has.

    Attributes:
        run: argument list of what becomes a monty worker on its standard input and output; the worker's own arguments
            are appended.
        stop: argument list that ends the worker once `run` is gone; empty where it goes with it.
    """

    run: tuple[str, ...]
    stop: tuple[str, ...] = ()


def container(section: ContainerSection) -> Command:
    """Raises: ConfigError where the engine's program is not installed."""
    if shutil.which(section.engine) is None:
        raise ConfigError(f"container: {section.engine} is not on PATH. Install it, or leave container out.")
    memory = f"{section.memory}m"
    options = {
        "name": "{name}",
        "network": "none",
        "cap-drop": "ALL",
        "security-opt": "no-new-privileges",
        "user": "65534:65534",  # nobody
        "pids-limit": "32",
        "memory": memory,
        "memory-swap": memory,  # none beside the memory
        "cpus": str(section.cpus),
        "tmpfs": "/tmp:rw,noexec,nosuid,nodev,size=1m",
        "workdir": "/tmp",
        "log-driver": "none",  # what it prints is the worker's own protocol
        "pull": "never",
        "entrypoint": "monty",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    limits = ["--ulimit", "core=0", "--ulimit", "nofile=64"]
    run = (section.engine, "run", "--rm", "--interactive", "--read-only", *flags, *limits, section.image)
    return Command(run, (section.engine, "kill", "{name}"))
