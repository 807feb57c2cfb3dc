"""A language model puts the templates' questions in other words; what bears their meaning has to survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.items import OPEN, plain
from mmkd.synthesis.evolving.outcomes import Proposal, Rejection, Task
from mmkd.synthesis.programs.evidence import COLOR_WORDS, NUMBER_WORDS
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling

# Words that another question would have, or lack.
BEARING = frozenset(
    (*COLORS, *SHAPES, *COLOR_WORDS, *NUMBER_WORDS, "left", "right", "above", "below", "more", "fewer", "equal",
     "together", "many", "than", "color", "not", "no", "without", "except", "least", "most", "less")
)  # fmt: skip
SAME = {"grey": "gray", "colour": "color", "colored": "color", "coloured": "color"}


class Rewording:
    """Asks for each open question once; a reply that says something else, or is no question, leaves it as it was."""

    def __init__(self, asker: Asker, sampling: Sampling):
        self.asker, self.sampling = asker, sampling

    def reword(self, tasks: Sequence[Task], made: Sequence[Proposal | Rejection]) -> list[Proposal | Rejection]:
        template = prompt("evolve_reword")
        found = list(made)
        asked: dict[str, tuple[int, Proposal]] = {}
        requests: list[Request] = []
        for place, (task, one) in enumerate(zip(tasks, made, strict=True)):
            if isinstance(one, Proposal) and one.content.form == OPEN:
                asked[task.id] = place, one
                turns = template.render(question=one.content.question)
                requests.append(Request(task.id, turns, (), self.sampling, may_be_cut=False, prompt=str(template)))
        for answer in self.asker.answer(requests):
            place, one = asked[answer.request.id]
            said = " ".join(answer.text.split())
            if answer.done and survives(one.content.question, said):
                content = one.content.model_copy(update={"question": said})
                model = f"{one.model}, reworded by {answer.model}"
                license = self.asker.backend.license
                found[place] = replace(
                    one, content=content, model=model, prompt=str(template), request=answer.key, license=license
                )
        return found


def survives(question: str, reworded: str) -> bool:
    """Whether the words that bear the meaning are the same, in the same order, and it is still one question."""
    short = 5 < len(reworded) <= 2 * len(question) + 20
    return short and reworded.endswith("?") and reworded.count("?") == 1 and _bearing(question) == _bearing(reworded)


def _bearing(text: str) -> tuple[tuple[str, ...], Counter[str]]:
    """Shapes and colours in their order, which a comparison or a walk hangs on; and all words that count."""
    words = [SAME.get(word, word) for word in plain(text).split()]
    words = [word.removesuffix("s") if word.removesuffix("s") in SHAPES else word for word in words]
    bearing = [word for word in words if word in BEARING]
    named = tuple(
        word for word in bearing if word in COLORS or word in SHAPES or word in ("left", "right", "above", "below")
    )
    return named, Counter(bearing)
