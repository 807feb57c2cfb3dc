"""One round: each item is evolved, checked from the cheapest test to the dearest, and judged against its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmkd.config.evolve_schema import DirectionsSection
from mmkd.synthesis.blind import UNKNOWN
from mmkd.synthesis.evolving.blind import BlindTest
from mmkd.synthesis.evolving.elimination import ParentJudge, eliminate
from mmkd.synthesis.evolving.executing import execute
from mmkd.synthesis.evolving.items import DIRECTIONS, Content, Direction, Version, draw
from mmkd.synthesis.evolving.outcomes import Evolver, Outcome, Proposal, Rejection, Task
from mmkd.synthesis.evolving.rules import Questions, check_rules
from mmkd.synthesis.programs.tools import Toolset

BLIND = "answered without the image"


@dataclass(frozen=True)
class Round:
    """What every round is made with.

    Args:
        blind: None leaves the test out; tolerance: see `eliminate`.
    """

    evolver: Evolver
    tools: Toolset
    judge: ParentJudge
    blind: BlindTest | None
    tolerance: float

    def run(self, tasks: Sequence[Task], before: Sequence[Outcome], asked: Questions) -> list[Outcome]:
        """The outcome of each task; `before` are the same items' last outcomes. Kept questions are put into `asked`.

        Raises: what `Asker.answer` raises; nothing is put anywhere then.
        """
        now: dict[str, Proposal | Rejection] = {}
        fresh = Questions()  # of this chunk: two items of an image may come to one question
        for task, last, one in zip(tasks, before, self.evolver.propose(tasks), strict=True):
            now[task.id] = self._checked(task, last.image, one, asked, fresh)
        self._not_blind(now)
        extra: dict[str, dict] = {}
        left = [(task, one.content) for task in tasks if isinstance(one := now[task.id], Proposal)]
        for (task, content), ruling in zip(left, self.judge.compare(left), strict=True):
            extra[task.id] = {"parent_difficulty": ruling.parent_difficulty, "turned": ruling.turned}
            try:
                eliminate(task.direction, ruling, self.tolerance)
                extra[task.id]["difficulty"] = ruling.difficulty
            except Rejection as rejection:
                now[task.id] = Rejection(rejection.kind, rejection.reason, content)
        outcomes = [_outcome(task, last, now[task.id], extra.get(task.id, {})) for task, last in zip(tasks, before)]
        for one in outcomes:
            if one.kept:
                asked.add(one.image, one.current.content.question)
        return outcomes

    def _checked(
        self, task: Task, image: str, proposed: Proposal | Rejection, asked: Questions, fresh: Questions
    ) -> Proposal | Rejection:
        if isinstance(proposed, Rejection):
            return proposed
        content = proposed.content
        try:
            check_rules(task.direction, task.parent.content, content)
            asked.check(image, content.question)
            fresh.check(image, content.question)
            content = execute(content, task.look(), self.tools)
        except Rejection as rejection:
            return Rejection(rejection.kind, rejection.reason, content)
        fresh.add(image, content.question)
        return replace(proposed, content=content)

    def _not_blind(self, now: dict[str, Proposal | Rejection]) -> None:
        if self.blind is None:
            return
        left: list[tuple[str, Content]] = [
            (name, one.content) for name, one in now.items() if isinstance(one, Proposal)
        ]
        contents = dict(left)
        for name, found in self.blind.answered(left).items():
            now[name] = Rejection(UNKNOWN if found.unknown else BLIND, found.reason, contents[name])


def direction_of(item: str, round: int, weights: DirectionsSection, seed: int) -> Direction:
    """Drawn for each item anew in each round."""
    return draw(seed, "direction", item, round).choices(DIRECTIONS, [getattr(weights, one) for one in DIRECTIONS])[0]


def _outcome(task: Task, last: Outcome, ended: Proposal | Rejection, extra: dict) -> Outcome:
    """A failed item goes on with its newest good version."""
    difficulty = extra.pop("difficulty", None)
    common = {"item": task.item, "index": last.index, "image": last.image, "round": task.round}
    common |= {"direction": task.direction, **extra}
    if isinstance(ended, Rejection):
        return Outcome(**common, current=task.parent, kind=ended.kind, reason=ended.reason, candidate=ended.content)
    version = Version(
        id=task.id, parent=task.parent.id, round=task.round, direction=task.direction, content=ended.content,
        difficulty=difficulty, model=ended.model, prompt=ended.prompt, request=ended.request, license=ended.license,
        memo=ended.memo,
    )  # fmt: skip
    return Outcome(**common, current=version, kept=True)
