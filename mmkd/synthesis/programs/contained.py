"""Starts one sandbox worker by another program, e.g. in a container, and ends it with its owner. Copied into a
launcher: standard library only.

The owner kills what it has started; of a container that is the client alone, behind which the container would go on.
So a second process waits for the client's end, however it comes, and then runs the command that stops the container.
"""

import json
import os
import sys
import uuid


def main() -> None:
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    with open(os.path.join(folder, "command.json"), encoding="utf-8") as file:
        command = json.load(file)
    name = f"mmkd-{uuid.uuid4().hex}"
    run, stop = ([part.replace("{name}", name) for part in command[key]] for key in ("run", "stop"))
    if stop:
        watch(stop)
    os.execvp(run[0], [*run, *sys.argv[1:]])


def watch(stop: list) -> None:
    """From another process, `stop` once this one has ended."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        os.set_inheritable(writing, True)  # held by this process, and by what it becomes, to its end
        return
    os.setsid()  # out of reach of a signal to the owner's group
    os.close(writing)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.read(reading, 1)
    os.execvp(stop[0], stop)


if __name__ == "__main__":
    main()
