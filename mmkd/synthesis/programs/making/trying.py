"""Every candidate on every image of its question, verified; and which of those that hold tells the rationale."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from math import factorial, prod

from PIL import Image

from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.images import open_image, read_image
from mmkd.data.records import Record
from mmkd.evaluate.matching import vqa_plain
from mmkd.synthesis.programs.answers import named, score
from mmkd.synthesis.programs.making.items import Item
from mmkd.synthesis.programs.making.judging import WordJudge
from mmkd.synthesis.programs.making.ledger import Ledger
from mmkd.synthesis.programs.making.writing import Candidate
from mmkd.synthesis.programs.reasons import Reason, Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.programs.verifier import blank, verify
from mmkd.synthesis.programs.wording import has_wordings
from mmkd.synthesis.requests import digest

AHEAD = 64  # items that are tried before their outcomes are written


class Trials:
    """All that is tried for a job's items; `run` does what the ledger does not hold, the rest reads it.

    Args:
        items: questions; records: by whose rows they go.
        candidates: of each question; troubles: of the back ends, see `seeing`.
        judge: of answers that differ from the label in words alone; None for nobody.
    """

    def __init__(
        self,
        config: ProgramsConfig,
        runner: Runner,
        records: Sequence[Record],
        items: Sequence[Item],
        candidates: Mapping[str, list[Candidate]],
        ledger: Ledger,
        troubles: Sequence[Exception] = (),
        judge: WordJudge | None = None,
    ):
        self.config, self.runner, self.records, self.items = config, runner, records, items
        self.candidates, self.ledger, self.troubles = candidates, ledger, troubles
        self.judge, self._hashes = judge, dict[int, str]()
        self.rows = sorted({item.row for item in items})
        self.asking: dict[str, list[int]] = defaultdict(list)  # question -> places of its items
        for place, item in enumerate(items):
            self.asking[item.asked].append(place)
        self.setting = {
            "limits": asdict(runner.limits),
            "tools": {name: runner.tools[name].version for name in runner.tools},
            "seeing": config.tools.model_dump(),
            "choices": config.choices,
            **({"agree": config.invent.agree} if config.invent else {}),
            **({"judge": judge.identity} if judge else {}),
        }

    def run(self) -> Iterator[None]:
        """Try what the ledger does not hold yet, one step an item. Raises what kept a back end from working."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            for start in range(0, len(self.items), AHEAD):
                batch = self.items[start : start + AHEAD]
                todo = [item for item in batch if self._of(item)]
                todo = [(item, key) for item in todo if (key := self.key(item)) not in self.ledger]
                for (_, key), outcomes in zip(todo, pool.map(self._tried, [item for item, _ in todo]), strict=True):
                    if self.troubles:
                        raise self.troubles[0]
                    self.ledger.add(key, outcomes)
                for _ in batch:
                    yield

    def key(self, item: Item) -> str:
        """Of all that the outcomes hang on."""
        images = map(self._hash, [item.row, *self._controls(item)])
        more = {"answers": item.answers, "soft_accuracy": self.config.soft_accuracy} if item.answers else {}
        more |= {"offered": item.choices} if item.choices else {}
        return digest(
            {
                "question": item.question,
                "label": item.label,
                "images": list(images),
                "programs": [one.program.source if one.program else one.source for one in self._of(item)],
                **self.setting,
                **more,
            }
        )

    def _hash(self, row: int) -> str:
        """Of the row's picture, read once: a picture stands in the keys of many items, each made several times."""
        if row not in self._hashes:
            self._hashes[row] = hashlib.sha256(read_image(self.records[row].images[0])).hexdigest()
        return self._hashes[row]

    def _of(self, item: Item) -> list[Candidate]:
        return self.candidates[item.asked]

    def _controls(self, item: Item) -> list[int]:
        """Rows with the same question and another answer first: on these the right program answers otherwise."""
        draw = random.Random(f"{self.config.seed}/{item.id}")
        same = [self.items[place] for place in self.asking[item.asked]]
        other = [
            one.row for one in same if one.label is not None and _label(one) != _label(item) and one.row != item.row
        ]
        rest = [row for row in draw.sample(self.rows, min(len(self.rows), self.config.controls + 1)) if row != item.row]
        chosen = dict.fromkeys([*draw.sample(other, min(len(other), self.config.controls)), *rest])
        return list(chosen)[: self.config.controls]

    def _image(self, row: int) -> Image.Image:
        return open_image(self.records[row].images[0])

    def _tried(self, item: Item) -> list[Outcome]:
        image = self._image(item.row)
        # Without a label nothing was right by luck; a question of the writer's own has its programs alone to go by.
        choices = (
            [*self.config.choices, *item.choices] if item.truth is not None else None if self.config.invent else ()
        )
        return verify(
            self.runner,
            [one.runnable for one in self._of(item)],
            image,
            item.question,
            item.truth,
            [blank(image), *map(self._image, self._controls(item))],
            choices,
            self.config.invent.agree if self.config.invent else 2,
            offered=item.choices,
            needed=self.config.soft_accuracy,
            judge=self.judge,
        )

    # --- afterwards ------------------------------------------------------------------------------------------------

    def outcomes(self, item: Item) -> list[tuple[Candidate, Outcome]]:
        """Each candidate with its outcome; verified ones that are wrong too often elsewhere are so no more."""
        if not self._of(item):
            return []
        found = []
        for one, outcome in zip(self._of(item), self.ledger.get(self.key(item)), strict=True):
            right, tried = self._elsewhere[item.asked, one.key]
            if outcome.verdict is Verdict.VERIFIED and tried and right < self.config.right_elsewhere * tried:
                message = f"right on {right} of the {tried} rows with this question."
                outcome = replace(outcome, verdict=Verdict.REJECTED, reason=Reason.ELSEWHERE, message=message)
            elif outcome.reason is Reason.ALONE and right == tried and self._luck[item.asked] <= self.config.luck:
                # Right on pictures with different answers, it also moves with the picture.
                message = f"alone, but right on all {tried} rows with this question."
                outcome = replace(outcome, verdict=Verdict.VERIFIED, reason=None, message=message)
            found.append((one, outcome))
        return found

    def held(self) -> dict[str, Candidate]:
        """Each question with a verified program, and that program."""
        found: dict[str, Candidate] = {}
        for item in self.items:
            if item.asked not in found and (chosen := best(self.outcomes(item))) is not None:
                found[item.asked] = chosen[0]
        return found

    @cached_property
    def _luck(self) -> dict[str, float]:
        """Question -> chance that a program which tells nothing apart is right on all its labelled pictures.

        Given how often it says what, each order of its answers is as likely as any other (Fisher's exact test), and one
        is right: the chance is the product of n_a! over n!, n pictures of which n_a have the answer a. Pictures for
        which several answers are right say nothing here.
        """
        labels: dict[str, dict[str | bytes, str]] = defaultdict(dict)
        for item in self.items:
            if (label := self._only_answer(item)) is not None:
                labels[item.asked][self.records[item.row].images[0]] = label
        chances = dict.fromkeys(self.asking, 1.0)
        for question, known in labels.items():
            orders = factorial(len(known)) // prod(factorial(n) for n in Counter(known.values()).values())
            chances[question] = 1 / orders
        return chances

    def _only_answer(self, item: Item) -> str | None:
        """The one answer that is right for an item; None where there is no label, or others may be right too: those of
        several people, and other words for a label that a judge knows."""
        if not item.answers:
            judged = self.judge and item.label and not item.choices and has_wordings(item.label, self.config.choices)
            return None if judged else _label(item)
        needed = self.config.soft_accuracy
        right = {vqa_plain(answer) for answer in item.answers if score(answer, item.answers, item.choices) >= needed}
        return right.pop() if len(right) == 1 else None

    @cached_property
    def _elsewhere(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(question, program) -> labelled rows on which its answer is right, and all.

        Of invented questions: pictures on which its answer is the one agreed on, and all on which any program answers,
        since two that mean different things agree now and then too.
        """
        right: Counter[tuple[str, str]] = Counter()
        tried: Counter[tuple[str, str]] = Counter()
        for item in self.items:
            if not self._of(item):
                continue
            outcomes = self.ledger.get(self.key(item))
            answered = any(one.verdict in (Verdict.VERIFIED, Verdict.REJECTED) for one in outcomes)
            if item.label is None and not (self.config.invent and answered):
                continue
            good = [(is_right if item.label is not None else is_agreed)(outcome) for outcome in outcomes]
            for one, well in zip(self._of(item), good, strict=True):
                right[item.asked, one.key] += well
                tried[item.asked, one.key] += 1
        questions = {(question, one.key) for question, each in self.candidates.items() for one in each}
        return {pair: (right[pair], tried[pair]) for pair in questions}


def _label(item: Item) -> str | None:
    """In the words of its choice, where the label is a letter."""
    return item.label and named(item.label, item.choices).lower()


def is_right(outcome: Outcome) -> bool:
    """Whether it gave an answer that is not wrong, for whatever reason."""
    gave = outcome.verdict in (Verdict.RAN, Verdict.VERIFIED, Verdict.REJECTED)
    return gave and outcome.reason not in (Reason.WRONG, Reason.UNJUDGED)


def is_agreed(outcome: Outcome) -> bool:
    """Whether enough programs gave its answer, for whatever reason."""
    return outcome.verdict is Verdict.VERIFIED or outcome.reason in (Reason.UNMOVED, Reason.UNTRIED)


def best(outcomes: Sequence[tuple[Candidate, Outcome]]) -> tuple[Candidate, Outcome] | None:
    """The verified program that was sampled most often; of equals, the one that was sampled first. One that is right
    in other words than the label's comes after those that need no judge."""
    held = [pair for pair in outcomes if pair[1].verdict is Verdict.VERIFIED]
    return min(held, key=lambda pair: bool(pair[1].judged), default=None)


def farthest(outcomes: Sequence[tuple[Candidate, Outcome]]) -> Outcome | None:
    """Of programs that do not hold, the one that came farthest: it says best why the question has none."""
    order = [Verdict.REFUSED, Verdict.FAILED, Verdict.REJECTED]
    reasons = list(Reason)

    def place(outcome: Outcome) -> tuple[int, int]:
        wrong = outcome.reason is Reason.WRONG
        return order.index(outcome.verdict), -1 if wrong else reasons.index(outcome.reason or Reason.WRONG)

    rejected = [outcome for _, outcome in outcomes if outcome.verdict in order]
    return max(rejected, key=place, default=None)
