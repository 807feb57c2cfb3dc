"""Evolving questions, tried without the image."""

from __future__ import annotations

from collections.abc import Sequence

from mmkd.config.evolve_schema import BlindSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.blind import Blind, answered_blind
from mmkd.synthesis.evolving.items import Content, draw
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling


class BlindTest:
    """Asks each question `tries` times without the image; see `answered_blind`."""

    def __init__(self, asker: Asker, section: BlindSection, seed: int):
        self.asker, self.section, self.seed = asker, section, seed

    def answered(self, contents: Sequence[tuple[str, Content]]) -> dict[str, Blind]:
        """Those that do not stay, by id."""
        answers = {name: content.answer for name, content in contents}
        return answered_blind(self.asker, self.requests(contents), answers, self.section.tries)

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
