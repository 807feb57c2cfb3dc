"""New questions for the images at hand, proposed by the writer; what its own programs agree on answers them.

After SelfCodeAlign (arXiv 2410.24198), which keeps a model's own tasks where the model's own tests pass in a sandbox.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from mmkd.config.programs_schema import InventSection, ProgramsConfig
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.programs.making.items import Item
from mmkd.synthesis.programs.making.writing import Prompts
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Answer, Request, Sampling, digest

TASK = "invented"
SHOWN = 6  # questions that a proposal has to differ from and may be like
MOST_LENGTH = 200  # characters of a question
_LABEL = re.compile(r"^(?:(?:[-*•]|\d+[.)]|question(?: \d+)?:)\s*)+", re.IGNORECASE)


def invent(
    asker: Asker, section: InventSection, config: ProgramsConfig, prompts: Prompts, items: Sequence[Item],
    records: Sequence[Record], log: RejectedLog,
) -> list[Item]:  # fmt: skip
    """New questions, each about some of the pictures, without an answer. `items` are the questions that exist.

    Proposals that are no question, or none that is new, go into the log.
    """
    existing = dict.fromkeys([*(item.question for item in items), *(one.question for one in prompts.nearest.kept)])
    asked = Proposals(prompts, list(existing), section.questions, config.sampling.seed)
    answers = shown(asker.answer(asked.requests()), asker.tally, "inventing questions", section.questions)
    rows = sorted({item.row for item in items})
    found = []
    for question in proposed(answers, existing, log):
        draw = random.Random(f"{config.seed}/{question}")
        for row in sorted(draw.sample(rows, min(section.images, len(rows)))):
            found.append(Item(f"{records[row].id}#{digest(question)[:12]}", row, question, None, TASK))
    return found


class Proposals:
    """Requests for one new question each, after some of those that exist."""

    def __init__(self, prompts: Prompts, existing: Sequence[str], count: int, seed: int):
        self.tools = [prompts.tools[name] for name in prompts.tools]
        self.existing, self.count, self.seed = existing, count, seed
        self.template = prompt("propose_question")

    def requests(self) -> Iterator[Request]:
        for number in range(self.count):
            draw = random.Random(f"{self.seed}/{number}")
            chosen = draw.sample(self.existing, min(SHOWN, len(self.existing)))
            sampling = Sampling(temperature=1.0, top_p=0.95, max_tokens=48, seed=self.seed + number)
            turns = self._turns(chosen)
            # Cut replies are kept: what counts is their first line.
            yield Request(f"invent#{number}", turns, (), sampling, may_be_cut=True, prompt=str(self.template))

    def _turns(self, chosen: Sequence[str]) -> tuple[Turn, ...]:
        turns: list[Turn] = []
        for number, question in enumerate([*chosen, ""], 1):
            *system, user = self.template.render(tools=self.tools, number=number)
            turns += [*system, user] if number == 1 else [user]
            turns += [Turn("assistant", question)] if question else []
        return tuple(turns)


def proposed(answers: Iterable[Answer], existing: Iterable[str], log: RejectedLog) -> list[str]:
    """The new questions among the answers, in the order in which they were asked for."""
    found: dict[str, str] = {}
    known = set(map(_bare, existing))
    # Answers come in the order in which they are ready; of two alike, whichever came first would be kept.
    in_order = sorted(answers, key=lambda answer: int(answer.request.id.partition("#")[2]))
    for place, answer in enumerate(in_order):
        question = question_in(answer.text)
        if not answer.done:
            log.note("invented", place, answer.request.id, BadRow(answer.reason, answer.kind))
        elif question is None:
            log.note("invented", place, answer.request.id, BadRow(f"{answer.text[:80]!r}", "not a question"))
        elif _bare(question) in known or _bare(question) in found:
            log.note("invented", place, answer.request.id, BadRow(f"{question!r} was there before", "not new"))
        else:
            found[_bare(question)] = question
    return list(found.values())


def question_in(reply: str) -> str | None:
    """The first line of a reply, where it is a question."""
    line = next((line.strip() for line in reply.splitlines() if line.strip()), "")
    line = " ".join(_LABEL.sub("", line).strip("\"'“”` ").split())
    return line if line.endswith("?") and len(line.split()) > 2 and len(line) <= MOST_LENGTH else None


def _bare(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))
