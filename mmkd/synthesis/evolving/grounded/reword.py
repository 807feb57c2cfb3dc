"""A language model puts the templates' questions in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.items import OPEN
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection, Task
from mmkd.synthesis.progress import shown
from mmkd.synthesis.requests import Sampling
from mmkd.synthesis.rewording import rewording_request, worded


class Rewording:
    """Asks for each open question once; a reply that says something else, or is no question, leaves it as it was."""

    def __init__(self, asker: Asker, sampling: Sampling):
        self.asker, self.sampling = asker, sampling

    def reword(self, tasks: Sequence[Task], made: Sequence[Proposal | Rejection]) -> list[Proposal | Rejection]:
        found = list(made)
        asked = {
            task.id: (place, one)
            for place, (task, one) in enumerate(zip(tasks, made, strict=True))
            if isinstance(one, Proposal) and one.content.form == OPEN
        }
        requests = (rewording_request(name, one.content.question, self.sampling) for name, (_, one) in asked.items())
        for answer in shown(self.asker.answer(requests), self.asker.tally, "other words", len(asked)):
            place, one = asked[answer.request.id]
            wording = worded(one.content.question, answer)
            if not wording.objection:
                found[place] = replace(
                    one,
                    content=one.content.model_copy(update={"question": wording.question}),
                    model=f"{one.model}, reworded by {wording.model}",
                    prompt=answer.request.prompt,
                    request=answer.key,
                    license=self.asker.backend.license,
                )
        return found
