"""A model that says whether two answers mean the same, through a store: the same pair is judged once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mmkd.errors import DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.programs.wording import Unjudged
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling, Status

MOST_TOKENS = 64


class SameMeaning(BaseModel):
    """The judge's whole reply."""

    model_config = ConfigDict(extra="forbid")

    same: Literal["yes", "no"]


class WordJudge:
    """Called by the verifier where answer and label differ in words alone; see `wording.may_say_the_same`.

    Attributes:
        identity: what its verdicts hang on beside the answers: the model and the prompt.
    """

    def __init__(self, asker: Asker):
        self.asker, self.template = asker, prompt("judge_words")
        self.identity = f"{asker.backend.model}, {self.template}"

    def __call__(self, question: str, label: str, answer: str) -> bool:
        """Whether both answers mean the same.

        Raises: Unjudged where the reply is no verdict; DataError where none came, which says nothing of the program;
            and what `Asker.answer` raises.
        """
        values = {"question": question, "label": label, "answer": answer}
        turns = self.template.render(**{name: " ".join(text.split()) for name, text in values.items()})
        request = Request("judge", turns, (), Sampling(max_tokens=MOST_TOKENS), SameMeaning, prompt=str(self.template))
        [said] = self.asker.answer([request])
        if said.status is Status.UNANSWERED:
            model = self.asker.backend.model
            raise DataError(
                f"{model}, the judge, gave no reply: {said.reason}. All so far is kept; run again to go on."
            )
        if not isinstance(said.value, SameMeaning):
            raise Unjudged(f"{said.kind}: {said.reason}")
        return said.value.same == "yes"
