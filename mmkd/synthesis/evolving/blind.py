"""The test of visual independence: who answers without the image has no use for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmkd.config.evolve_schema import BlindSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.evolving.items import Content, draw, plain
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling

LONG = 4  # words from which answers are compared by their words, not as they are
OVERLAP = 0.8  # F1 of words
MOST_SAID = 12  # words around a short answer


class BlindTest:
    """Asks each question `tries` times without the image; blind where all replies are right.

    With one try a guess would do: half of all questions for yes or no would go. A model that always says yes still
    takes those whose answer is yes, so look at the answers' balance in the data card.
    """

    def __init__(self, asker: Asker, section: BlindSection, seed: int):
        self.asker, self.section, self.seed = asker, section, seed

    def answered(self, contents: Sequence[tuple[str, Content]]) -> set[str]:
        """The ids of those that are answered without the image. A reply that does not come is no right answer."""
        right: Counter[str] = Counter()
        by_id = dict(contents)
        requests = self.requests(contents)
        for answer in shown(self.asker.answer(requests), self.asker.tally, "asking blind", len(requests)):
            name, _, _ = answer.request.id.rpartition("#")
            right[name] += answer.done and same_answer(answer.text, by_id[name].answer)
        return {name for name, count in right.items() if count == self.section.tries}

    def requests(self, contents: Sequence[tuple[str, Content]]) -> list[Request]:
        template = prompt("evolve_blind")
        made = []
        for name, content in contents:
            turns = template.render(question=content.question)
            for number in range(self.section.tries):
                seed = draw(self.seed, "blind", name, number).randrange(2**31)
                sampling = Sampling(self.section.temperature, 1.0, self.section.max_tokens, seed)
                made.append(Request(f"{name}#{number}", turns, (), sampling, may_be_cut=True, prompt=str(template)))
        return made


def same_answer(said: str, answer: str) -> bool:
    """Whether a reply gives an answer: the same words; a short answer inside a few words; most words of a long one."""
    one, other = plain(said).split(), plain(answer).split()
    if not one or not other or one == other:
        return bool(one) and one == other
    if len(other) < LONG:
        return len(one) <= MOST_SAID and f" {' '.join(other)} " in f" {' '.join(one)} "
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other)) >= OVERLAP
