"""What runs a program. An executor is a boundary: whatever the code is, nothing but `call` is reachable from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.reasons import Reason

# (tool, positional arguments, named arguments) -> JSON result. Raises reasons.Stop to end the program.
Call = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Execution:
    """How one program ended.

    Attributes:
        answer: plain JSON, None where there is none.
        reason: why it did not end by itself with an answer, or None.
        message: for people; of the program's own making where reason is RAISED, so never to be trusted.
    """

    answer: Any = None
    reason: Reason | None = None
    message: str = ""


class Executor(Protocol):
    """Safe to use from several threads."""

    def execute(self, code: str, inputs: dict[str, str], call: Call, limits: Limits) -> Execution:
        """Run `code` with `inputs` as its globals; its last expression is the answer.

        Never raises for anything that the code does. Ends after limits.seconds of computing, whatever happens.
        """
        ...

    def close(self) -> None: ...
