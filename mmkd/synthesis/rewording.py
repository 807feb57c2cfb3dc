"""A template's question in a model's words; what bears its meaning has to survive, or the template's words stay."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

from mmkd.data.records import Turn
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.synthesis.programs.counting import NUMBER_WORDS
from mmkd.synthesis.programs.evidence import COLOR_WORDS
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Answer, Request, Sampling

SIDES = ("left", "right", "above", "below")
# Words that another question would have, or lack.
BEARING = frozenset(
    (*COLORS, *SHAPES, *COLOR_WORDS, *NUMBER_WORDS, *SIDES, "shape", "color", "more", "fewer", "equal", "together",
     "many", "than", "what", "how")
)  # fmt: skip
# Words that change no question about what is there. Any other new one might: "in the corner", "only", "not", "small".
# "it", "this" and "that" would point at something else than the template names, "and" would join something to it.
_HARMLESS = (
    "a an any the i you me we us is are be do does have has can could would will please tell say see find spot count "
    "give show name notice identify know look there here in on at of to from for by with as if whether image "
    "picture photo scene view contain contains hold holds include includes present visible shown seen located found "
    "placed exist exists appear appears number numbers amount total directly immediately "
    "side counting"
)
HARMLESS = frozenset(_HARMLESS.split())
SAME = {"grey": "gray", "colour": "color", "colors": "color", "colours": "color", "which": "what"}
# Shown as earlier turns, those of the same opening; without them a small model answers. Of things that no scene has.
EXAMPLES = (
    ("is there a pink star?", "Can you see a pink star?"),
    ("is there a heart above the white cross?", "Do you find a heart above the white cross?"),
    ("how many white squares are there?", "How many white squares does the picture show?"),
    ("how many hearts are there?", "How many hearts can you count?"),
    ("are there fewer hearts than stars?", "Do you count fewer hearts than stars?"),
    ("are there more pink shapes than white shapes?", "Can you see more pink shapes than white shapes?"),
    ("is the number of stars equal to the number of hearts?", "Does the number of stars equal the number of hearts?"),
    ("is the number of pink shapes equal to the number of white shapes?",
     "Would you say the number of pink shapes is equal to the number of white shapes?"),
    ("what shape is below the pink star?", "Which shape do you find below the pink star?"),
    ("what shape is right of the white shape?", "Tell me, what shape is right of the white shape?"),
    ("what is the color of the shape right of the cross?", "What color is the shape right of the cross?"),
    ("what is the color of the shape above the pink star?", "What color does the shape above the pink star have?"),
)  # fmt: skip
_PLACE = re.compile(r"\b(?:(?:in|on|of|from) )?(?:the|this) (?:image|picture|photo|scene)\b")
LEAST, ROOM = 6, 20  # characters


@dataclass(frozen=True)
class Wording:
    """What is asked in the end.

    Attributes:
        question: in the model's words, or the template's.
        said: what the model said, used or not; model: who.
        objection: a few words on why the template's stay; empty where the model's are taken.
        answer: the model's, whole.
    """

    question: str
    said: str
    objection: str
    answer: Answer

    @property
    def model(self) -> str:
        return self.answer.model


def rewording_request(name: str, question: str, sampling: Sampling) -> Request:
    template = prompt("reword")
    *system, asked = template.render(question=question)
    like = [one for one in EXAMPLES if one[0].split()[:2] == question.lower().split()[:2]]
    shown = [(template.render(question=asks)[-1], Turn("assistant", said)) for asks, said in like or EXAMPLES[::2]]
    return Request(name, (*system, *chain.from_iterable(shown), asked), (), sampling, prompt=str(template))


def worded(question: str, answer: Answer) -> Wording:
    """The model's words, where they ask the same; no answer leaves the template's."""
    said = " ".join(answer.text.split())
    reason = objection(question, said) if answer.done else answer.kind
    return Wording(question if reason else said, said, reason, answer)


def objection(question: str, reworded: str) -> str:
    """Why these words may not stand for a template's question; empty where they may.

    Colours, shapes and directions have to come in the template's order, which a comparison or a walk hangs on; all
    words of BEARING as often as there; and what else is new has to be HARMLESS. So a wording is refused more often than
    it would have to be, and the template's answer stays true of one that is taken.
    """
    if reworded.count("?") != 1 or not reworded.endswith("?") or not reworded[0].isalnum():
        return "not one question"
    if not LEAST <= len(reworded) <= 2 * len(question) + ROOM:
        return "too short or too long"
    if _letters(question) == _letters(reworded):
        return "the same words"
    was, now = _words(question), _words(reworded)
    if _named(was) != _named(now):
        return "other things in it"
    if Counter(filter(BEARING.__contains__, was)) != Counter(filter(BEARING.__contains__, now)):
        return "another question"
    if {*now} - {*was} - HARMLESS - BEARING:
        return "words that may change it"
    return ""


def _words(text: str) -> list[str]:
    """Lower case, singular, one spelling; without "in this picture", which says nothing new."""
    text = "".join(c if c.isalnum() or c in "'-" else " " for c in text.lower())
    text = re.sub(r"\b(left|right) side of\b", r"\1 of", _PLACE.sub(" ", " ".join(text.split())))
    words = [SAME.get(word, word) for word in text.split()]
    return [word.removesuffix("s") if word.removesuffix("s") in (*SHAPES, "shape") else word for word in words]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _named(words: list[str]) -> list[str]:
    """Colours, shapes and directions, in order; "left" without "of" is none."""
    found = []
    for word, after in zip(words, [*words[1:], ""]):
        if word in ("left", "right"):
            found.append(f"{word} {after}")
        elif word in COLOR_WORDS or word in SHAPES or word in SIDES:
            found.append(word)
    return found
