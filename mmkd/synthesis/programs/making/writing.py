"""Programs from a language model: what it is asked, and the candidates that its replies hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmkd.data.records import Turn
from mmkd.synthesis.asking import Asker, answer_of
from mmkd.synthesis.programs.checker import Program, ProgramError, check
from mmkd.synthesis.programs.making.examples import Example, Nearest
from mmkd.synthesis.programs.tools.registry import Toolset
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling, Status, digest

_FENCED = re.compile(r"```[a-z]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """One program for a question.

    Attributes:
        program: None where the checker refuses the source.
        seeds: of the samples that came out as this program, in order.
        prompt: digest of the chat that it answers.
    """

    source: str
    program: Program | None
    seeds: tuple[int, ...]
    prompt: str

    @property
    def key(self) -> str:
        return self.program.key if self.program else ""

    @property
    def name(self) -> str:
        """What tells candidates of one question apart."""
        return self.key or self.source

    @property
    def runnable(self) -> str | Program:
        return self.program or self.source


class Prompts:
    """The chats in which programs are asked for.

    Args:
        tools: whose signatures are shown; examples: how many.
        held: programs that held for other questions, to choose examples from beside ours.
    """

    def __init__(self, tools: Toolset, examples: int, held: Sequence[Example] = ()):
        self.tools, self.nearest, self.template = tools, Nearest(tools, examples, held), prompt("write_program")
        self.name = f"{self.template}, examples v{self.nearest.version}"
        self.name += f" and {len(held):,} that held" if held else ""

    def turns(self, question: str) -> tuple[Turn, ...]:
        """System turn, then examples as questions that were answered, then the question."""
        shown = [self.tools[name] for name in self.tools]
        *system, last = self.template.render(tools=shown, question=_one_line(question))
        turns = list(system)
        for example in self.nearest(question):
            turns += [self.template.render(tools=shown, question=example.question)[-1]]
            turns += [Turn("assistant", example.program)]
        return (*turns, last)


class Writer:
    """Samples of each question's programs, through an asker that asks nothing twice.

    Args:
        samples: programs for a question with a label; one without is asked for one program, the likeliest.
    """

    def __init__(self, asker: Asker, prompts: Prompts, sampling: Sampling, samples: int):
        self.asker, self.prompts, self.sampling, self.samples = asker, prompts, sampling, samples

    def requests(self, questions: dict[str, bool]) -> Iterator[Request]:
        """Of each distinct question, and whether some row has a label for it."""
        for question, labelled in questions.items():
            yield from self._requests(question, labelled)

    def count(self, questions: dict[str, bool]) -> int:
        return sum(self.samples if labelled else 1 for labelled in questions.values())

    def _requests(self, question: str, labelled: bool) -> Iterator[Request]:
        turns, number = self.prompts.turns(question), self.samples if labelled else 1
        drawn = self.sampling if labelled else replace(self.sampling, temperature=0.0)
        for sample in range(number):
            one = replace(drawn, seed=drawn.seed + sample)
            # Cut replies are kept: the first function may be whole, and the checker says if it is not.
            yield Request(f"{question}#{sample}", turns, (), one, may_be_cut=True, prompt=self.prompts.name)

    def candidates(self, question: str, labelled: bool) -> tuple[list[Candidate], str]:
        """The kept programs, those sampled most often first, and why there are fewer samples than asked for."""
        found: dict[str, Candidate] = {}
        missing = ""
        asked = digest([turn.text for turn in self.prompts.turns(question)])
        for request in self._requests(question, labelled):
            entry = self.asker.store.last(self.asker.key(request.content()))
            if entry is None or entry.status is Status.UNUSABLE:
                missing = "the writer gave no reply; run again."
                continue
            answer = answer_of(entry, request)
            if not answer.done:
                missing = answer.reason
                continue
            one = _candidate(source_in(answer.text), self.prompts.tools, request.sampling.seed, asked)
            seeds = (*found[one.name].seeds, *one.seeds) if one.name in found else one.seeds
            found[one.name] = replace(found.get(one.name, one), seeds=seeds)
        return sorted(found.values(), key=lambda one: -len(one.seeds)), missing


def source_in(reply: str) -> str:
    """The code of a reply: what stands in its first fence; else its functions, from the first one on to the first line
    that belongs to none."""
    fenced = _FENCED.search(reply)
    if fenced:
        return fenced[1].strip("\n")
    lines: list[str] = []
    for line in reply.split("\n"):
        starts = line.startswith("def ")
        if not lines and not starts:
            continue
        if lines and line.strip() and not starts and not line[0].isspace():
            break
        lines.append(line.rstrip())
    return "\n".join(lines).strip("\n") or reply.strip()


def _candidate(source: str, tools: Toolset, seed: int, prompt: str) -> Candidate:
    try:
        return Candidate(source, check(source, tools), (seed,), prompt)
    except ProgramError:
        return Candidate(source, None, (seed,), prompt)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def distinct(questions: Sequence[tuple[str, bool]]) -> dict[str, bool]:
    """Each different text once, in order, and whether it has a label anywhere."""
    found: dict[str, bool] = {}
    for text, labelled in questions:
        found[text] = found.get(text, False) or labelled
    return found
