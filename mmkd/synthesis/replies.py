"""From a reply to an answer, or to what is wrong with it. Nothing is guessed: what does not parse is no answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ValidationError

from mmkd.data.records import Turn
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Completion, Request, Sampling
from mmkd.synthesis.visible import visible

EMPTY, CUT_OFF = "empty reply", "cut off"
FENCES = ("```", "```json")
# Finish reasons, in small letters. Any other, a server's own abort or a call of a tool, leaves a reply without its end.
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
AT_LIMIT = ("length", "model_length", "max_tokens")
WITHHELD = ("refusal", "content_filter")
MOST_QUOTED = 2000  # letters of a wrong reply that are shown to the model again
MOST_NAMED = 200  # letters of the name of a field that is wrong


@dataclass(frozen=True)
class Problem:
    """Why a reply is no answer.

    Attributes:
        final: asking again would not help.
        told: whether the model is told, because it can do better knowing.
    """

    kind: str
    reason: str
    final: bool = False
    told: bool = False


def read_reply(request: Request, reply: Completion) -> BaseModel | Problem | None:
    """The value of a JSON answer, None for a good free text, or a Problem."""
    finish = reply.finish.lower()
    if finish in WITHHELD:
        return Problem("refused by the model", visible(reply.text[:300]) or "filtered", final=True)
    if finish not in WHOLE + AT_LIMIT:
        named = visible(reply.finish[:80])
        return Problem("broken off", f"the server ended the reply before its end, finish reason {named}")
    said = bool(reply.text.strip())
    if finish in AT_LIMIT and not (said and request.may_be_cut and request.schema is None):
        way_out = "; raise it, or allow it with may_be_cut" if said else " before it said a word; raise it"
        reason = f"the reply ran into max_tokens {request.sampling.max_tokens}{way_out}"
        return Problem(CUT_OFF, reason, final=request.sampling.temperature == 0)  # which would say the same again
    if not said:
        return Problem(EMPTY, f"no text, finish reason {finish}")
    if request.schema is None:
        return None
    try:
        return request.schema.model_validate_json(unfenced(reply.text))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = visible(".".join(map(str, first["loc"]))[:MOST_NAMED]) or "the reply"  # it may be the reply's own word
        return Problem("not the form asked for", f"{place}: {first['msg']}", told=True)


def unfenced(text: str) -> str:
    """The inside of a reply that is one fenced code block; any other text as it is. In time that grows with its length
    alone: a model may write blank lines for ever."""
    opening, _, rest = text.strip().partition("\n")
    inside, newline, closing = rest.rpartition("\n")
    return inside if newline and opening.rstrip() in FENCES and closing.strip() == "```" else text


def next_try(request: Request, tries: int, text: str, problem: Problem | None) -> tuple[tuple[Turn, ...], Sampling]:
    """Turns and sampling of a request's try number `tries`, after its last reply `text` failed by `problem`."""
    if not tries or problem is None:
        return request.turns, request.sampling
    sampling = replace(request.sampling, seed=(request.sampling.seed + 7919 * tries) % 2**31)
    if not problem.told:
        return request.turns, sampling
    again = prompt("ask_again").render(problem=problem.reason)
    return (*request.turns, Turn("assistant", text[:MOST_QUOTED]), *again), sampling
