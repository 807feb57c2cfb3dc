"""Which programs are right, and right for a reason: what stands against luck."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from mmkd.evaluate.matching import vqa_plain
from mmkd.synthesis.programs.answers import Truth, as_text, named, score, worded
from mmkd.synthesis.programs.checker import Program, ProgramError, check
from mmkd.synthesis.programs.parts import is_box
from mmkd.synthesis.programs.reasons import NOT_ITS_DOING, Reason, Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.programs.wording import Unjudged, may_say_the_same

NEEDED = 0.5  # score from which an answer is right; for boxes the usual IoU, else two humans of ten


def verify(
    runner: Runner,
    programs: Sequence[str | Program],
    image: Image.Image,
    question: str,
    truth: Truth | None = None,
    controls: Sequence[Image.Image] | None = None,
    choices: Sequence[str] | None = ("yes", "no"),
    agree: int = 2,
    offered: Sequence[str] = (),
    needed: float = NEEDED,
    judge: Callable[[str, str, str], bool] | None = None,
) -> list[Outcome]:
    """Run the programs sampled for one question; each comes back VERIFIED, or with the reason why not.

    In this order: it ran; its answer is right; some tool that it called looked at the picture, and what it saw can
    change the answer; where the answer is one of `choices` (and so right by luck one time in a few), a second,
    different program gives the same; where no answer is known, no other answer has as many programs; and on some
    control picture it answers otherwise, or fails by its own doing (where time ran out, a worker died or a tool broke,
    that picture says nothing).

    Args:
        truth: an answer, several human answers, or a box; None where there is no label (nothing counts as wrong).
        controls: pictures on which the right reason would not give this answer; by default a blank one. Answers such
            as "no" and 0 are right on a blank picture too and so never pass it: give pictures of other rows for these.
        choices: the answers that could be guessed; for multiple choice, all that are on offer; None for every answer.
        agree: different programs that have to give such an answer.
        offered: choices of this question, in the order of their letters: an answer may name one by letter or by words.
        needed: VQA soft accuracy from which an answer is right where several humans have answered.
        judge: (question, label, answer) -> whether both mean the same, or raises Unjudged; asked only of an answer that
            looked at the picture and differs from the label in words alone.
    """

    def text_of(outcome: Outcome) -> str:
        text = named(outcome.answer, offered)
        return (worded(text, choices or ()) or worded(vqa_plain(text), choices or ()) or text).lower()

    programs = [_checked(runner, one) for one in programs]
    outcomes = _run(runner, programs, image, question)
    for place, one in enumerate(outcomes):
        if one.verdict is not Verdict.RAN:
            continue
        looked, program = any(event.grounded for event in one.events), programs[place]
        grounded = looked and isinstance(program, Program) and program.fed
        if truth is not None and _wrong(one.answer, truth, offered, needed):
            # Of choices on offer one is meant, or none: there is no other wording.
            if judge is not None and grounded and not offered and may_say_the_same(one.answer, truth, choices or ()):
                outcomes[place] = _judged(one, str(truth), judge)
            else:
                outcomes[place] = _rejected(one, Reason.WRONG, f"{as_text(one.answer)!r} is not {truth!r}.")
        elif not looked:
            outcomes[place] = _rejected(one, Reason.NOT_GROUNDED, "no tool that it called looked at the picture.")
        elif not grounded:
            why = "its answer is the same whatever the tools that look at the picture give."
            outcomes[place] = _rejected(one, Reason.UNUSED, why)

    guessable = {choice.lower() for choice in choices or ()}
    by_answer: dict[str, set[str]] = defaultdict(set)
    for one in outcomes:
        if one.verdict is Verdict.RAN:
            by_answer[text_of(one)].add(one.key)
    for place, one in enumerate(outcomes):
        if one.verdict is not Verdict.RAN:
            continue
        text = text_of(one)
        said, rivals = (
            len(by_answer[text]),
            max((len(keys) for rival, keys in by_answer.items() if rival != text), default=0),
        )
        if (choices is None or text in guessable) and said < agree:
            why = f"{text!r} could be luck: {said} of {agree} different programs say so."
            outcomes[place] = _rejected(one, Reason.ALONE, why)
        elif truth is None and choices is None and rivals >= said:
            why = f"{said} different programs say {text!r}, and {rivals} something else."
            outcomes[place] = _rejected(one, Reason.DISPUTED, why)
        else:
            on = [blank(image)] if controls is None else controls
            outcomes[place] = _without_the_picture(runner, programs[place], one, on, text_of)
    return outcomes


def blank(image: Image.Image) -> Image.Image:
    """A picture of the same size in the other's mean colour: nothing to see."""
    red, green, blue = (int(value) for value in np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0))
    return Image.new("RGB", image.size, (red, green, blue))


def _checked(runner: Runner, program: str | Program) -> str | Program:
    """The program, or its source where it does not pass the check."""
    try:
        return check(program, runner.tools) if isinstance(program, str) else program
    except ProgramError:
        return program


def _run(runner: Runner, programs: Sequence[str | Program], image: Image.Image, question: str) -> list[Outcome]:
    done: dict[str, Outcome] = {}
    outcomes = []
    for program in programs:
        text = program if isinstance(program, str) else program.source
        if text not in done:  # samplers repeat themselves
            done[text] = runner.run(program, image, question)
        outcomes.append(done[text])
    return outcomes


def _wrong(answer: Any, truth: Truth, offered: Sequence[str], needed: float) -> bool:
    several = not isinstance(truth, str) and not is_box(truth)
    return score(answer, truth, offered) < (needed if several else NEEDED)


def _judged(outcome: Outcome, label: str, judge: Callable[[str, str, str], bool]) -> Outcome:
    text = as_text(outcome.answer)
    try:
        same = judge(outcome.question, label, text)
    except Unjudged as error:
        return _rejected(outcome, Reason.UNJUDGED, f"whether {text!r} says {label!r} in other words: {error}")
    if same:
        return replace(outcome, judged=True, message=f"{label!r} in other words, says the judge.")
    wrong = _rejected(outcome, Reason.WRONG, f"{text!r} is not {label!r}, says the judge.")
    return replace(wrong, judged=False)


def _without_the_picture(
    runner: Runner,
    program: str | Program,
    outcome: Outcome,
    controls: Sequence[Image.Image],
    text_of: Callable[[Outcome], str],
) -> Outcome:
    """VERIFIED where on some control picture it answers otherwise, or fails by its own doing."""
    untried = None
    for control in controls:
        other = runner.run(program, control, outcome.question)
        if other.reason in NOT_ITS_DOING:
            untried = other
        elif other.verdict is not Verdict.RAN or text_of(other) != text_of(outcome):
            return replace(outcome, verdict=Verdict.VERIFIED)
    if untried is not None:
        why = f"on a control picture it ended by {untried.reason}: {untried.message}"
        return _rejected(outcome, Reason.UNTRIED, why)
    return _rejected(outcome, Reason.UNMOVED, f"{text_of(outcome)!r} is its answer without this picture too.")


def _rejected(outcome: Outcome, reason: Reason, message: str) -> Outcome:
    return replace(outcome, verdict=Verdict.REJECTED, reason=reason, message=message)
