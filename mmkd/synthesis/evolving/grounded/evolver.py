"""Writes the next version of a question about a scene, from what the tools see in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmkd.synthesis.evolving.grounded.forms import FORMS
from mmkd.synthesis.evolving.grounded.plans import Plan, plans, understood
from mmkd.synthesis.evolving.grounded.reword import Rewording
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.grounded.telling import told
from mmkd.synthesis.evolving.items import OPEN, Content, draw
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection, Task
from mmkd.synthesis.evolving.rules import check_rules
from mmkd.synthesis.programs.tools import View
from mmkd.synthesis.same_answer import plain

NO_PLAN = "no such question here"
NAME = "grounded v2"


class Grounded:
    """See `Evolver`.

    Perceptual: a question of as many steps, objects and skills about other things, rather the rare ones. Cognitive: one
    step more, about the same things where that can be. Interaction: the same question in another of FORMS.

    Args:
        rewording: has questions put in other words; None keeps the templates'.
    """

    def __init__(self, seed: int, rewording: Rewording | None = None):
        self.seed_number, self.rewording = seed, rewording

    def seed(self, content: Content, view: View) -> Proposal:
        """Raises: Rejection for a question that is none about scenes, or whose answer is not what the tools see."""
        sight, plan = Sight(view), understood(content.question)
        made = told(plan, OPEN, sight, draw())
        if made is None or plain(made.answer) != plain(content.answer):
            seen = "has no answer" if made is None else f"is {made.answer!r}"
            raise Rejection(
                "contradicted by a tool", f"{content.question!r} {seen} by the tools, not {content.answer!r}"
            )
        made = made.model_copy(update={"question": content.question, "answer": content.answer})
        return Proposal(made, memo=_memo(plan, OPEN))

    def propose(self, tasks: Sequence[Task]) -> list[Proposal | Rejection]:
        made = [self._proposed(task) for task in tasks]
        return self.rewording.reword(tasks, made) if self.rewording else made

    def _proposed(self, task: Task) -> Proposal | Rejection:
        memo = task.parent.memo
        plan = Plan(memo["kind"], tuple(memo["words"]), memo["how"], tuple(memo["sides"]))
        rng = draw(self.seed_number, "grounded", task.id)
        try:
            sight = Sight(task.look())
            if task.direction == "interaction":
                choices = [(plan, form) for form in FORMS if form != memo["form"]]
                rng.shuffle(choices)
            else:
                other = self._perceptual if task.direction == "perceptual" else self._cognitive
                choices = [(one, memo["form"]) for one in other(plan, sight, rng)]
            for one, form in choices:
                content = told(one, form, sight, rng)
                if content is not None and _may_follow(task, content):
                    return Proposal(content, NAME, memo=_memo(one, form))
        except Rejection as rejection:
            return rejection
        return Rejection(NO_PLAN, f"this scene has no {task.direction} evolution of {task.parent.content.question!r}")

    def _perceptual(self, plan: Plan, sight: Sight, rng) -> list[Plan]:
        like = [
            (one, said)
            for one, said in plans(sight, plan.steps)
            if (len(set(one.words)), one.skills) == (len(set(plan.words)), plan.skills)
            and set(one.words) != set(plan.words)
        ]
        # Of three that were drawn, the one about the fewest things first.
        drawn = _balanced(like, rng, 3)
        return sorted(drawn, key=lambda one: sum(len(sight.fitting(words)) for words in one.words))

    def _cognitive(self, plan: Plan, sight: Sight, rng) -> list[Plan]:
        harder = [(one, said) for one, said in plans(sight, plan.steps + 1) if one.skills >= plan.skills]
        same = [(one, said) for one, said in harder if set(plan.words) <= set(one.words)]
        return [*_balanced(same, rng, 3), *_balanced(harder, rng, 3)]


def _balanced(found: list[tuple[Plan, str]], rng, count: int) -> list[Plan]:
    """Drawn by kind, then by answer, then by question, so that no answer is told by its question's kind."""
    groups: dict[tuple[str, str], dict[str, list[Plan]]] = defaultdict(lambda: defaultdict(list))
    for plan, said in found:
        groups[plan.kind, plan.how][said].append(plan)
    drawn = []
    while groups and len(drawn) < count:
        answers = groups[rng.choice(sorted(groups))]
        drawn.append(rng.choice(answers[rng.choice(sorted(answers))]))
    return drawn


def _may_follow(task: Task, content: Content) -> bool:
    """Whether it is an evolution at all; another form of a question takes no fewer steps, or it would be easier."""
    try:
        check_rules(task.direction, task.parent.content, content)
    except Rejection:
        return False
    return task.direction != "interaction" or len(content.steps) >= len(task.parent.content.steps)


def _memo(plan: Plan, form: str) -> dict[str, Any]:
    return {**asdict(plan), "form": form}
