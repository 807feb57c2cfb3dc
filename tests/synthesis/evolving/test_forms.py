"""Task forms on scenes: each answer is the one right one by the scene itself, read from the question's own words."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from mmkd.data.scene_questions import COLORS, DIRECTIONS, SHAPES, Thing
from mmkd.synthesis.evolving.grounded.forms import FORMS
from mmkd.synthesis.evolving.grounded.plans import answer, plans
from mmkd.synthesis.evolving.grounded.sight import Sight
from mmkd.synthesis.evolving.grounded.telling import told
from mmkd.synthesis.evolving.items import FORMS as ALL_FORMS
from mmkd.synthesis.evolving.items import draw

IN_WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
TOLD = {  # by hand, as a reader of these languages knows them
    "German": {"yes": "ja", "no": "nein", "circle": "Kreis", "rectangle": "Rechteck", "triangle": "Dreieck",
               "red": "rot", "blue": "blau", "black": "schwarz", "green": "grün", "yellow": "gelb", "gray": "grau",
               "brown": "braun", "0": "null", "1": "eins", "2": "zwei", "3": "drei", "4": "vier", "5": "fünf",
               "6": "sechs", "7": "sieben", "8": "acht", "9": "neun"},
    "French": {"yes": "oui", "no": "non", "circle": "cercle", "rectangle": "rectangle", "triangle": "triangle",
               "red": "rouge", "blue": "bleu", "black": "noir", "green": "vert", "yellow": "jaune", "gray": "gris",
               "0": "zéro", "1": "un", "2": "deux", "3": "trois", "4": "quatre", "5": "cinq", "6": "six", "7": "sept",
               "8": "huit", "9": "neuf"},
}  # fmt: skip


class Truth:
    """What is true of a scene: its things, not what a detector finds."""

    def __init__(self, things: list[Thing], grid: int):
        self.things, self.grid = things, grid
        self.cells = {(thing.row, thing.column): thing for thing in things}

    def fitting(self, words: str) -> list[Thing]:
        names = words.removesuffix("s").split()
        colors, shapes = [n for n in names if n in COLORS], [n for n in names if n in SHAPES]
        assert {*colors, *shapes, "shape"} >= {*names}
        return [t for t in self.things if t.color in (colors or COLORS) and t.shape in (shapes or SHAPES)]

    def named(self, phrase: str) -> Thing:
        """Of "the red circle", "the shape (that is) left of ..."."""
        if found := re.fullmatch(r"the shape (?:that is )?(left of|right of|above|below) (the .*)", phrase):
            return self.beside(self.named(found[2]), found[1])
        (thing,) = self.fitting(phrase.removeprefix("the "))
        return thing

    def beside(self, thing: Thing, side: str) -> Thing:
        down, right = DIRECTIONS[side]
        return self.cells[thing.row + down, thing.column + right]

    def at(self, box: str) -> Thing:
        left, top, right, bottom = json.loads(box)
        return self.cells[int((top + bottom) / 2 * self.grid), int((left + right) / 2 * self.grid)]


def options(text: str) -> dict[str, str]:
    return dict(re.findall(r"\(([a-h])\) (.*?)(?= \([a-h]\) |$)", text))


def region(truth: Truth, question: str) -> str:
    asks, shown = re.match(r"which region shows (.*?)\? (.*)", question).groups()
    right = truth.fitting(asks[2:]) if asks.startswith("a ") else [truth.named(asks)]
    (letter,) = [letter for letter, box in options(shown).items() if truth.at(box) in right]
    return letter


def matching(truth: Truth, question: str) -> str:
    names, shown = re.match(
        r"match with regions, in this order: (.*)\. name a letter for each: (.*)", question
    ).groups()
    letters = {truth.at(box): letter for letter, box in options(shown).items()}
    return ", ".join(letters[truth.named(name)] for name in names.split("; "))


def completeness(truth: Truth, question: str) -> str:
    asks, listed = re.match(r"are these all regions that show (.*), none left out\? (.*)", question).groups()
    every = {thing for words in asks.split(" or ") for thing in truth.fitting(words.removeprefix("a "))}
    shown = [truth.at(box) for box in listed.split("; ")]
    assert set(shown) <= every
    assert len(set(shown)) == len(shown) >= len(every) - 1
    return "yes" if set(shown) == every else "no"


def missing(truth: Truth, question: str) -> str:
    listed = re.match(r"which of these is not in the image: (.*)\?", question)[1]
    (absent,) = [words for words in re.split(", | or ", listed) if not truth.fitting(words)]
    return absent


def nearer(truth: Truth, question: str) -> str:
    end, *two = re.match(r"which is nearer to (the shape .*): (the .*) or (the .*)\?", question).groups()
    place = truth.named(end)
    far = {(t.row - place.row) ** 2 + (t.column - place.column) ** 2: name for name in two for t in [truth.named(name)]}
    assert len(far) == 2
    return far[min(far)]


def reasons(truth: Truth, question: str) -> str:
    def holds(chain: str) -> bool:
        first, *rest = chain.split("; ")
        now = None
        for said in (first, *rest):
            if found := re.fullmatch(r"I find (\d+) (.*)", said):
                fitting = truth.fitting(found[2])
                if len(fitting) != int(found[1]):
                    return False
                now = fitting[0] if fitting else None
            elif found := re.fullmatch(r"(left of|right of|above|below) it is a (.*)", said):
                now = truth.beside(now, found[1])
                if now not in truth.fitting(found[2]):
                    return False
            else:
                left, right = said.split(" = ")
                assert total(left) == int(right)
        return True

    (letter,) = [letter for letter, chain in options(question).items() if holds(chain)]
    return letter


def total(sum_: str) -> int:
    terms = sum_.split()
    return int(terms[0]) + sum(int(n) * (1 if sign == "+" else -1) for sign, n in zip(terms[1::2], terms[2::2]))


def of_them(truth: Truth, question: str) -> str:
    def yes(value: bool) -> str:
        return "yes" if value else "no"

    look, asks = question.split(". ")
    if walk := re.findall(r"at (the .*?)(?:,|$)", look) if re.search(" (it|that one)\\?$", asks) else []:
        now = truth.named(walk[0])
        for hop in walk[1:]:
            now = truth.beside(now, re.fullmatch(r"the shape (.*) (?:it|that one)", hop)[1])
        words, side = re.fullmatch(r"(.*?) (left of|right of|above|below) (?:it|that one)\?", asks).groups()
        now = truth.beside(now, side)
        if found := re.fullmatch(r"is there a (.*)", words):
            return yes(now in truth.fitting(found[1]))
        return now.shape if words == "what shape is" else now.color
    names = re.findall(r"(?:the|for|of a) ((?:\w+ )?(?:shape|circle|rectangle|triangle)s?)", look)
    counts = [len(truth.fitting(words)) for words in names]
    if "one in the image" in asks:
        return yes(counts[0] > 0)
    if "of them" in asks or "of both" in asks or "of all these" in asks:
        return str(sum(counts))
    if "of the others together" in asks:
        return yes(counts[0] + counts[1] > counts[2])
    if "how many more" in asks:
        return str(counts[0] - counts[1])
    word = re.match(r"are there (?:as )?(more|fewer|many)", asks)[1]
    return yes({"more": counts[0] > counts[1], "fewer": counts[0] < counts[1], "many": counts[0] == counts[1]}[word])


def instructed(truth: Truth, question: str, right: str) -> str:
    if found := re.match(r"how many of each are there: (.*)\? write a line for each", question):
        return "\n".join(f"{name}: {len(truth.fitting(name))}" for name in found[1].split(", "))
    if found := re.match(r"put these in order, the fewest in the image first: (.*)\.", question):
        counts = {name: len(truth.fitting(name)) for name in found[1].split(", ")}
        assert len(set(counts.values())) == len(counts)
        return ", ".join(sorted(counts, key=counts.get))
    value = int(right) if right.isdigit() else {"yes": True, "no": False}.get(right, right)
    if "JSON" in question:
        return json.dumps({"answer": value})
    if isinstance(value, int) and not isinstance(value, bool):
        return next(word for word, number in IN_WORDS.items() if number == value)
    return right.upper() if isinstance(value, str) else str(value).lower()


def translated(truth: Truth, question: str, right: str) -> str:
    return TOLD[re.search(r"word of (\w+)\.$", question)[1]][right]


READ = {
    "region selection": region, "object-region match": matching, "completeness check": completeness,
    "missing object": missing, "relative distance": nearer, "rationale": reasons, "coreference": of_them,
    "instruction following": instructed, "translation": translated,
}  # fmt: skip


@pytest.fixture(scope="module")
def told_forms(make_scene, view_of):
    """Form -> (truth, plan's answer, content) of versions of several scenes."""
    found: dict[str, list] = {form: [] for form in FORMS}
    for grid, most in ((2, 6), (3, 4)):
        for index in range(3):
            one = make_scene("train", index, 5, grid)
            sight, truth, rng = Sight(view_of(one)), Truth(one.things, grid), random.Random(index)
            for steps in range(1, most):
                every = list(plans(sight, steps))
                for plan, said in rng.sample(every, min(len(every), 24)):
                    made = {form: told(plan, form, sight, draw(index, plan, form)) for form in FORMS}
                    for form, content in made.items():
                        if content is not None:
                            found[form].append((truth, said, content))
    return found


def test_the_forms_are_of_the_seventeen_and_are_all_told(told_forms):
    assert set(FORMS) < set(ALL_FORMS)
    assert len(FORMS) == 12
    assert min(len(made) for made in told_forms.values()) > 15


@pytest.mark.parametrize("form", READ)
def test_the_answer_is_the_only_right_one_by_the_scene(told_forms, form):
    for truth, said, content in told_forms[form]:
        more = (said,) if form in ("instruction following", "translation") else ()
        assert content.answer == READ[form](truth, content.question, *more), content.question


def test_no_letter_and_no_yes_is_the_likelier_answer(told_forms):
    for form in ("region selection", "rationale", "multiple choice"):
        letters = Counter(content.answer for _, _, content in told_forms[form])
        assert letters["a"] < 0.6 * letters.total()
    several = [content for _, _, content in told_forms["completeness check"] if content.question.count("[") > 1]
    assert {content.answer for content in several} == {"yes", "no"}


def test_a_longer_chain_stays_longer_in_every_form(make_scene, view_of):
    """So that a version may go on growing in the form it has."""
    sight = Sight(view_of(make_scene("train", 1, 5, 2)))
    for form in FORMS:
        lengths = {}
        for steps in (2, 3, 4):
            for plan, _ in plans(sight, steps):
                if plan.kind == "walk" and (content := told(plan, form, sight, draw(form))) is not None:
                    assert answer(plan, sight)
                    lengths.setdefault(steps, set()).add(
                        (len(content.steps), len(content.objects), len(content.skills))
                    )
        assert all(max(lengths[n])[0] < min(lengths[n + 1])[0] for n in lengths if n + 1 in lengths), form
