"""Which new versions stay: a judge compares each with its parent, never with the seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.items import OPEN, Content, Direction, as_told
from mmkd.synthesis.evolving.outcomes import Rejection, Task
from mmkd.synthesis.programs.counting import NUMBER_WORDS
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Answer, Request, Sampling
from mmkd.synthesis.same_answer import plain

Points = Annotated[int, Field(ge=1, le=10, strict=True)]


ARTICLES = frozenset(("a", "an", "the"))
NO_WORDS = frozenset(("yes", "no", "none", *NUMBER_WORDS))  # what a last step may come to without a word of it


class Comparison(BaseModel):
    """A judge's reply."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=4000)]
    first_difficulty: Points
    second_difficulty: Points
    first_right: bool
    second_right: bool
    better: Literal["first", "second", "neither"]


@dataclass(frozen=True)
class Ruling:
    """What a judge says of a version and its parent.

    Attributes:
        difficulty, parent_difficulty: 1 to 10, the mean of both orders; None without a ruling.
        right: whether the version's answer is, in both orders; better: whether it beats its parent.
        turned: whether the better one changed with the order.
        error: why there is no ruling. Never a score.
    """

    difficulty: float | None = None
    parent_difficulty: float | None = None
    right: bool = False
    better: bool = False
    turned: bool = False
    reason: str = ""
    error: str = ""


class ParentJudge(Protocol):
    def compare(self, pairs: Sequence[tuple[Task, Content]]) -> list[Ruling]:
        """A ruling for each (task, new version), in order."""
        ...


def eliminate(direction: Direction, ruling: Ruling, tolerance: float) -> None:
    """Raises: Rejection for what does not stay.

    A perceptual version stays if it is as hard as its parent, within `tolerance` points, better or not: its objective
    is equal difficulty, which "better" would contradict. The others have to be better, and no easier.
    """
    if ruling.difficulty is None or ruling.parent_difficulty is None:
        raise Rejection("no ruling", ruling.error)
    points = f"difficulty {ruling.difficulty:g}, its parent's {ruling.parent_difficulty:g}. {ruling.reason}"
    if not ruling.right:
        raise Rejection("judged wrong", ruling.reason)
    if direction == "perceptual":
        if abs(ruling.difficulty - ruling.parent_difficulty) > tolerance:
            raise Rejection("not of equal difficulty", points)
        return
    if ruling.turned:
        raise Rejection("the judge turns with the order", ruling.reason)
    if ruling.difficulty < ruling.parent_difficulty:
        raise Rejection("easier than its parent", points)
    if not ruling.better:
        raise Rejection("no better than its parent", points)


class ModelJudge:
    """A model that sees the image compares both versions, in both orders.

    Args:
        chain: see EvolveConfig; the judge is shown what will be told.
    """

    def __init__(self, asker: Asker, sampling: Sampling, chain: bool):
        self.asker, self.sampling, self.chain = asker, sampling, chain

    def compare(self, pairs: Sequence[tuple[Task, Content]]) -> list[Ruling]:
        requests = [self.request(task, content, order) for task, content in pairs for order in (0, 1)]
        answers: dict[str, Answer] = {}
        for answer in shown(self.asker.answer(requests), self.asker.tally, "comparing versions", len(requests)):
            answers[answer.request.id] = answer
        return [ruling_of(answers[f"{task.id}#0"], answers[f"{task.id}#1"]) for task, _ in pairs]

    def request(self, task: Task, content: Content, order: int) -> Request:
        """Order 0 shows the parent first."""
        template = prompt("evolve_judge")
        pair = (task.parent.content, task.parent.direction), (content, task.direction)
        shown = [dict(zip(("question", "answer"), as_told(*one, self.chain))) for one in pair]
        turns = template.render(first=shown[order], second=shown[1 - order])
        return Request(
            f"{task.id}#{order}", turns, (task.image,), self.sampling, Comparison, prompt=str(template),
            license=task.parent.license,
        )  # fmt: skip


def ruling_of(parent_first: Answer, child_first: Answer) -> Ruling:
    """Of both orders; none unless both replies could be used."""
    one, other = parent_first.value, child_first.value
    if not isinstance(one, Comparison) or not isinstance(other, Comparison):
        failed = parent_first if not isinstance(one, Comparison) else child_first
        return Ruling(error=f"{failed.kind}: {failed.reason}")
    wins = (one.better == "second", other.better == "first")
    return Ruling(
        difficulty=(one.second_difficulty + other.first_difficulty) / 2,
        parent_difficulty=(one.first_difficulty + other.second_difficulty) / 2,
        right=one.second_right and other.first_right,
        better=all(wins),
        turned=wins[0] != wins[1],
        reason=f"{one.reason} / {other.reason}",
    )


class ToolsJudge:
    """Judges by what was executed, without a model: for scenes, where the tools see all there is.

    A version whose steps bear its answer (`bears_answer`), none of which its tool contradicted, is right; difficulty is
    `difficulty_of`; better is harder, or as hard in another task form.
    """

    def compare(self, pairs: Sequence[tuple[Task, Content]]) -> list[Ruling]:
        return [self._ruling(task.parent.content, content) for task, content in pairs]

    def _ruling(self, parent: Content, child: Content) -> Ruling:
        was, now = difficulty_of(parent), difficulty_of(child)
        missing = bears_answer(child)
        better = now > was or (now == was and parent.form != child.form)
        executed = sum(step.function != "none" for step in child.steps)
        return Ruling(now, was, not missing, better, False, missing or f"{executed} of its steps were executed")


def bears_answer(content: Content) -> str:
    """Why the executed steps do not bear the answer; empty where they do.

    A step hangs on the image where it looks at it, or calculates from steps that do. Where the last executed step hangs
    on it, the answer to an open question is yes, no, a number, or in words that such steps hold; what other forms make
    of it (a letter, a list, another language) is the evolver's. Where it does not, e.g. a sum of numbers that stand in
    no step, the answer has to be in words of steps that do, in every form.
    """
    seen: set[int] = set()  # places of steps that hang on the image, from 1
    last = 0
    for place, step in enumerate(content.steps, start=1):
        if step.function == "none":
            continue
        last = place
        from_steps = map(int, re.findall(r"#(\d+)", step.argument)) if step.function == "calculate" else ()
        if step.function != "calculate" or seen.intersection(from_steps):
            seen.add(place)
    if not seen:
        return "none of its executed steps looks at the image"
    if last in seen and content.form != OPEN:
        return ""
    texts = " ".join(f"{step.argument} {step.result}" for place, step in enumerate(content.steps, 1) if place in seen)
    new = {*plain(content.answer).split()} - {*plain(texts).split()} - ARTICLES
    if last in seen:
        new = {word for word in new - NO_WORDS if not word.lstrip("-").isdigit()}
    return f"its answer holds what no step that looks found: {', '.join(sorted(new))}" if new else ""


def difficulty_of(content: Content) -> float:
    """1 to 10, from the fields alone: a point a step, half a point a skill or object beyond the first, half a point
    for a form other than the open question."""
    points = 1 + len(content.steps) + 0.5 * (max(len(content.skills), 1) + max(len(content.objects), 1) - 2)
    return min(10.0, points + 0.5 * (content.form != OPEN))
