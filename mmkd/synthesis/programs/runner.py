"""Runs programs: check, sandbox, trace."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from mmkd.synthesis.programs.backends.base import Backends
from mmkd.synthesis.programs.backends.classical import classical
from mmkd.synthesis.programs.checker import Program, ProgramError, check
from mmkd.synthesis.programs.events import Event
from mmkd.synthesis.programs.executor import Executor
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.monty import MontyExecutor
from mmkd.synthesis.programs.parts import MOST_SIDE
from mmkd.synthesis.programs.reasons import Reason, Verdict
from mmkd.synthesis.programs.server import ToolServer
from mmkd.synthesis.programs.tools.registry import Toolset
from mmkd.synthesis.programs.tools.view import WHOLE, View

# How often a program may be tried that ended otherwise than by itself. A worker is killed, or the machine was busy, and
# the program is not to blame; one that kills its worker, or takes too long, does so again. Several programs may be
# unlucky at once where workers are killed one after the other, so a death is given more tries than a limit of time.
TRIES = {Reason.WORKER_DIED: 6, Reason.TIME: 2}


@dataclass(frozen=True)
class Outcome:
    """What became of one program on one picture.

    Attributes:
        answer: plain JSON, or None. A part of the picture is given as its box [left, top, right, bottom].
        events: the trace, also of a program that failed half-way.
        verdict: RAN, REFUSED or FAILED; the verifier makes VERIFIED or REJECTED of RAN.
        reason: None where the verdict is RAN or VERIFIED.
        message: what happened, for people.
        key: normal form of the program, "" where it was refused.
        judged: whether a judge said that the answer is the label in other words; None where none was asked.
    """

    question: str
    answer: Any
    events: tuple[Event, ...]
    verdict: Verdict
    reason: Reason | None = None
    message: str = ""
    key: str = ""
    judged: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Outcome:
        """Of what `to_dict` gave, through JSON or not."""
        reason = None if row["reason"] is None else Reason(row["reason"])
        events = tuple(map(Event.from_dict, row["events"]))
        return cls(**{**row, "events": events, "verdict": Verdict(row["verdict"]), "reason": reason})


class Runner:
    """Runs programs in a sandbox, over one set of tools and back ends. Safe to use from several threads if the back
    ends are. Close it, or use it in a `with`.

    Args:
        executor: the default is a pool of pydantic-monty workers.
        tools: names of the tools offered; all that the back ends serve by default.
    """

    def __init__(
        self,
        backends: Backends | None = None,
        limits: Limits | None = None,
        executor: Executor | None = None,
        tools: list[str] | None = None,
    ):
        self.backends, self.limits = backends or classical(), limits or Limits()
        self.tools = Toolset(self.backends, tools)
        self.executor: Executor = executor or MontyExecutor()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self.executor.close()

    def run(self, program: str | Program, image: Image.Image, question: str = "") -> Outcome:
        """Check a program and run it on a picture. Never raises for what the program is or does.

        Where its worker died, or time ran out, it is run again from the start, see TRIES.

        Args:
            program: source text, or what `check` made of it.
            question: goes into the outcome; the program does not see it.
        """
        if isinstance(program, str):
            try:
                program = check(program, self.tools)
            except ProgramError as error:
                return Outcome(question, None, (), Verdict.REFUSED, error.reason, str(error))
        picture = shrunk(image)
        ended: Counter[Reason] = Counter()
        while True:
            view = View(picture, self.backends)
            server = ToolServer(self.tools, view, self.limits)
            done = self.executor.execute(program.code, {"image": WHOLE}, server.call, self.limits)
            if done.reason not in TRIES:
                break
            ended[done.reason] += 1
            if ended[done.reason] == TRIES[done.reason]:
                break
        answer, verdict = done.answer, Verdict.FAILED if done.reason else Verdict.RAN
        if isinstance(answer, str) and answer in view.parts:
            answer = list(view.parts[answer].box)
        return Outcome(question, answer, tuple(server.events), verdict, done.reason, done.message, program.key)


def shrunk(image: Image.Image) -> Image.Image:
    """The picture as RGB with sides of at most 2048 pixels: what tools see, and what boxes are measured in."""
    image = image.convert("RGB")
    if max(image.size) > MOST_SIDE:
        scale = MOST_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image
