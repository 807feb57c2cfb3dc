"""What became of a program, and why: the words that reports count."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    RAN = "ran"  # it ended and gave an answer; nothing is known about whether that is right
    REFUSED = "refused"  # the checker did not let it run
    FAILED = "failed"  # it was stopped, or raised
    VERIFIED = "verified"  # right, and for a reason that the trace shows
    REJECTED = "rejected"  # it ran, but does not pass the verifier


class Reason(StrEnum):
    """Why a program is not verified. Each belongs to one verdict."""

    # refused
    NOT_PYTHON = "not python"
    TOO_LARGE = "too large"
    NOT_ALLOWED = "not allowed"
    UNKNOWN_NAME = "unknown name"
    WRONG_ARGUMENTS = "wrong arguments"
    # failed
    TIME = "time limit"
    MEMORY = "memory limit"
    RECURSION = "recursion limit"
    TOOL_CALLS = "too many tool calls"
    MODEL_CALLS = "too many model calls"
    OUTPUT = "output too large"
    BAD_ARGUMENT = "bad argument"
    TOOL_ERROR = "tool error"
    UNCLEAR = "unclear answer of a model"
    RAISED = "raised"
    OUTSIDE = "asked for something outside"
    WORKER_DIED = "worker died"
    NOT_JSON = "answer is not json"
    NO_ANSWER = "no answer"
    # rejected
    WRONG = "wrong answer"
    UNJUDGED = "the judge gave no verdict"
    NOT_GROUNDED = "looked at nothing"
    UNUSED = "what it saw is not used"
    UNMOVED = "same answer without the picture"
    UNTRIED = "not tried without the picture"
    ALONE = "no second program agrees"
    DISPUTED = "other programs say otherwise"
    ELSEWHERE = "wrong on other pictures"


# What the machine, a back end or a model did: a program that ended so has shown nothing of its own.
NOT_ITS_DOING = frozenset((Reason.TIME, Reason.WORKER_DIED, Reason.TOOL_ERROR))


class Stop(Exception):
    """Ends a program, with the reason. Raised by tools and their server; never seen by the program itself."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message
