"""From difficult and easy items to new ones: drafted, filtered, answered by the teacher."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mmkd.config.compete_schema import BlindFilterSection, CompeteConfig
from mmkd.config.load import check_options
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.on_disk import ById, Made
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.answering import both
from mmkd.synthesis.blind import UNKNOWN, answered_blind
from mmkd.synthesis.competing.asking import answered, open_role
from mmkd.synthesis.competing.assessing import Kind, Outcome, good_enough
from mmkd.synthesis.competing.augmentors import Draft, Parent, Wanted
from mmkd.synthesis.competing.augmentors.registry import CHECKS, augmentor
from mmkd.synthesis.competing.filters import Known, badly_formed
from mmkd.synthesis.competing.folder import answer_limits
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.keys import require_keys
from mmkd.synthesis.paid import purse_of
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling

IN_OTHER_WORDS = "in other words"


@dataclass(frozen=True)
class Grown:
    """What came of a round's drafts.

    Attributes:
        gone: drafts that did not stay, by reason.
        worded: drafts that a model was asked to put in other words: how many are, and why the others are not.
    """

    items: list[Item]
    drafted: int
    gone: dict[str, int]
    worded: dict[str, int]


class Fit(BaseModel):
    reason: str = Field(min_length=1, max_length=4000)
    fits: bool


def check_augmentor(config: CompeteConfig) -> None:
    """Raises ConfigError for an unknown augmentor or option, for options that cannot run with this config, or an
    endpoint among them whose key is not set; before anything is asked."""
    options = _options(config)
    if (check := CHECKS.get(augmentor(config.augment.name))) is not None:
        check(config, options)
    require_keys(options, at="augment")


def _options(config: CompeteConfig) -> dict[str, Any]:
    name = config.augment.name
    return check_options(name, config.augment.options(), augmentor(name), at="augment", given=("wanted",))


class Gone:
    """Counts the drafts that do not stay, by kind, and writes down why."""

    def __init__(self, log: RejectedLog):
        self.log, self.counts = log, Counter[str]()

    def add(self, item: Item, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        number = int(item.id.rpartition(".")[2])
        self.log.note("draft", number, item.id, BadRow(reason, kind))


def grow(
    config: CompeteConfig,
    out: Path,
    round: int,
    pool: Sequence[Item],
    outcomes: Sequence[Outcome],
    teacher: ModelSection,
    log: RejectedLog,
) -> Grown:
    """New items on the pool's pictures, each with an answer of the teacher that is worth learning.

    Raises: what augmentor, judge and teacher raise.
    """
    known = Known(config.filters.similarity)
    for item in pool:
        remember(known, item)
    parents = drawn(config, round, ById(pool), outcomes)
    name, gone = config.augment.name, Gone(log)
    asked = out / "asked"
    wanted = Wanted(parents, known, asked, config.seed, round, config.reasks, purse_of(asked))
    drafts = list(augmentor(name)(wanted, **_options(config)))
    items = formed(drafts, known, round, name, gone)
    if config.filters.grounding is not None:
        items = fitting(config, config.filters.grounding, out, items, gone)
    told = answered_well(config, out, items, teacher, log)  # which writes down why
    if len(told) < len(items):
        gone.counts["no answer worth learning"] = len(items) - len(told)
    if config.filters.blind is not None:
        told = needing_pictures(config, config.filters.blind, out, told, gone)
    worded = Counter(draft.objection or IN_OTHER_WORDS for draft in drafts if draft.template)
    return Grown(list(told), len(drafts), dict(sorted(gone.counts.items())), dict(worded.most_common()))


def remember(known: Known, item: Item) -> None:
    """As it is asked, and as its template asks: neither is to be asked on this picture again."""
    known.add(item.images, item.question)
    if item.plain_question != item.question:
        known.add(item.images, item.plain_question)


def formed(drafts: Sequence[Draft], known: Known, round: int, engine: str, gone: Gone) -> list[Item]:
    """Drafts as items `rROUND.NUMBER`: well formed, and not asked about the picture before."""
    items = []
    for number, draft in enumerate(drafts):
        item = _item(draft, f"r{round}.{number}", round, engine)
        if draft.problem:
            gone.add(item, draft.kind, draft.problem)
        elif reason := badly_formed(item.question):
            gone.add(item, "form", reason)
        elif near := known.near(item.images, item.question):
            gone.add(item, "near-duplicate", f"{item.question!r} says {near!r} again")
        else:
            remember(known, item)
            items.append(item)
    return items


def answered_well(
    config: CompeteConfig, out: Path, items: Sequence[Item], teacher: ModelSection, log: RejectedLog
) -> Sequence[Item]:
    """The items with the teacher's answers, those below the floor left out where the config has them checked."""
    sampling = Sampling(**config.sampling.model_dump())
    cut, limits = config.may_be_cut, answer_limits(out, config)
    told = answered(teacher, out / "asked", items, sampling, log, config.reasks, "teacher", cut, limits=limits)
    return good_enough(config, out, told, log) if config.check_teacher else told


def drawn(config: CompeteConfig, round: int, items: Mapping[str, Item], outcomes: Sequence[Outcome]) -> list[Parent]:
    """Parents of a round's drafts: the difficult share of this round, then easy ones; all of one kind where there is
    none of the other."""
    shares = config.augment.hard_share
    hard = int(config.augment.count * shares[min(round, len(shares)) - 1] + 0.5)
    found = {}
    for kind in (Kind.HARD, Kind.EASY):
        of_kind = (place for place, one in enumerate(outcomes) if one.kind is kind and one.id in items)
        found[kind] = Made(array("q", of_kind), outcomes.__getitem__)
    if not all(found.values()):
        hard = config.augment.count if found[Kind.HARD] else 0
    parents = []
    for kind, count in ((Kind.HARD, hard), (Kind.EASY, config.augment.count - hard)):
        rng = random.Random(f"{config.seed}/{round}/{kind}")
        number = 0
        while found[kind] and count > 0:
            for outcome in rng.sample(found[kind], min(count, len(found[kind]))):
                parents.append(Parent(items[outcome.id], kind is Kind.HARD, number, outcome.student))
            count, number = count - len(found[kind]), number + 1
    return parents


def fitting(config: CompeteConfig, model: ModelSection, out: Path, items: Sequence[Item], gone: Gone) -> list[Item]:
    """The items that fit their pictures by the word of a model; those whose answer is known do."""
    template = prompt("compete_grounding")
    asked = [item for item in items if item.reference is None]
    requests = (
        Request(
            item.id, template.render(question=item.question), item.images, Sampling(max_tokens=300), Fit,
            prompt=str(template), license=item.license,
        )
        for item in asked
    )  # fmt: skip
    with open_role(model, out / "asked", "grounding", config.reasks) as asker:
        answers = {
            answer.request.id: answer
            for answer in shown(asker.answer(requests), asker.tally, "does it fit", len(asked))
        }
    kept = []
    for item in items:
        answer = answers.get(item.id)
        if answer is not None and not isinstance(answer.value, Fit):
            gone.add(item, "fit unknown", f"{answer.kind}: {answer.reason}")
        elif answer is not None and isinstance(answer.value, Fit) and not answer.value.fits:
            gone.add(item, "does not fit the picture", answer.value.reason)
        else:
            kept.append(item)
    return kept


def needing_pictures(
    config: CompeteConfig, section: BlindFilterSection, out: Path, items: Sequence[Item], gone: Gone
) -> list[Item]:
    """The items that a model without the picture does not answer as the teacher does with it."""
    requests = []
    for item in items:
        for number in range(section.tries):
            seed = random.Random(f"{config.seed}/blind/{item.id}/{number}").randrange(2**31)
            sampling = Sampling(section.temperature, 1.0, section.max_tokens or config.sampling.max_tokens, seed)
            request = replace(item.request(sampling), id=f"{item.id}#{number}", images=(), may_be_cut=True)
            requests.append(request)
    if not requests:
        return []
    with open_role(section.model, out / "asked", "blind", config.reasks) as asker:
        found = answered_blind(asker, requests, {item.id: item.answer for item in items}, section.tries)
    for item in items:
        if blind := found.get(item.id):
            gone.add(item, UNKNOWN if blind.unknown else "needs no picture", blind.reason)
    return [item for item in items if item.id not in found]


def _item(draft: Draft, name: str, round: int, engine: str) -> Item:
    parent = draft.parent.item
    return Item(
        name,
        draft.question,
        parent.images,
        draft.task or parent.task,
        draft.reference,
        round,
        parent.id,
        f"{engine}/{'hard' if draft.parent.hard else 'easy'}",
        draft.prompt,
        both(parent.license, draft.license),
        template=draft.template,
        said=draft.said,
        writer=draft.writer,
    )
