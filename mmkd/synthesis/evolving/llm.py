"""The evolver that is a model: it sees the image and writes the next version as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.executing import offered
from mmkd.synthesis.evolving.items import FORMS, Content, Skill, draw
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection, Task
from mmkd.synthesis.programs.tools import Toolset, View
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling

FUNCTIONS = {
    "grounding": '"grounding": finds things; argument says what, boxes are all of them (none: []), result is "".',
    "referring": '"referring": zooms in; argument is "", boxes is the one box looked at, result names what is in it.',
    "calculate": '"calculate": argument is an expression of numbers, + - * / and brackets, where #1 is the number that '
    "step 1 gave (of grounding: how many); boxes is [], result is the number.",
    "ocr": '"ocr": reads; argument says where, boxes is [] or the one box, result is the text, letter by letter.',
}


class ModelEvolver:
    """See `Evolver`. Each item is one request; images go at full resolution.

    Args:
        tools: with which the steps will be executed; functions that they lack are not offered.
    """

    def __init__(self, asker: Asker, sampling: Sampling, tools: Toolset):
        self.asker, self.sampling = asker, sampling
        self.functions = [FUNCTIONS[name] for name in offered(tools)]

    def seed(self, content: Content, view: View) -> Proposal:
        return Proposal(content)

    def propose(self, tasks: Sequence[Task]) -> list[Proposal | Rejection]:
        """A reply that does not fit the schema, or none, is a rejection."""
        requests = [self.request(task) for task in tasks]
        found: dict[str, Proposal | Rejection] = {}
        for answer in shown(self.asker.answer(requests), self.asker.tally, "evolving", len(requests)):
            if isinstance(answer.value, Content):
                found[answer.request.id] = Proposal(
                    answer.value, answer.model, answer.request.prompt, answer.key, self.asker.backend.license
                )
            else:
                found[answer.request.id] = Rejection(answer.kind, answer.reason)
        return [found[task.id] for task in tasks]

    def request(self, task: Task) -> Request:
        template = prompt("evolve")
        parent = task.parent.content
        turns = template.render(
            caption=task.caption,
            objects=[(label, [round(n, 4) for n in box]) for label, box in task.objects],
            parent=json.dumps(parent.model_dump(), ensure_ascii=False, indent=1),
            direction=task.direction,
            form=parent.form,
            forms=[form for form in FORMS if form != parent.form],
            skills=get_args(Skill),
            functions=self.functions,
        )
        # Of the round too: an item that failed is drawn anew, though it is asked the same.
        seed = draw(self.sampling.seed, "llm", task.id).randrange(2**31)
        sampling = replace(self.sampling, seed=seed)
        return Request(
            task.id, turns, (task.image,), sampling, Content, prompt=str(template), license=task.parent.license
        )
