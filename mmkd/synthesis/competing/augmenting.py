"""From difficult and easy items to new ones: drafted, filtered, answered by the teacher."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.load import check_options
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.answering import both
from mmkd.synthesis.competing.asking import answered
from mmkd.synthesis.competing.assessing import Kind, Outcome, good_enough
from mmkd.synthesis.competing.augmentors import Draft, Parent, Wanted
from mmkd.synthesis.competing.augmentors.registry import augmentor
from mmkd.synthesis.competing.filters import Known, badly_formed
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import shown
from mmkd.synthesis.prompts import prompt
from mmkd.synthesis.requests import Request, Sampling
from mmkd.synthesis.selection.image_need import image_need
from mmkd.synthesis.selection.registry import Rows


@dataclass(frozen=True)
class Grown:
    """What came of a round's drafts.

    Attributes:
        gone: drafts that did not stay, by reason.
    """

    items: list[Item]
    drafted: int
    gone: dict[str, int]


class Fit(BaseModel):
    reason: str = Field(min_length=1, max_length=4000)
    fits: bool


def check_augmentor(config: CompeteConfig) -> None:
    """Raises ConfigError for an unknown augmentor or option, before anything is asked."""
    name = config.augment.name
    check_options(name, config.augment.options(), augmentor(name), at="augment", given=("wanted",))


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
        known.add(item.images, item.question)
    parents = drawn(config, round, {item.id: item for item in pool}, outcomes)
    name = config.augment.name
    options = check_options(name, config.augment.options(), augmentor(name), at="augment", given=("wanted",))
    wanted = Wanted(parents, known, out / "asked", config.seed, round, config.reasks)
    drafts = list(augmentor(name)(wanted, **options))
    gone = Counter[str]()

    def drop(number: int, item_id: str, kind: str, reason: str) -> None:
        gone[kind] += 1
        log.note("draft", number, item_id, BadRow(reason, kind))

    items: dict[str, Item] = {}
    for number, draft in enumerate(drafts):
        problem, kind = _problem(draft, known)
        new = _item(draft, f"r{round}.{number}", round, name)
        if problem:
            drop(number, new.id, kind, problem)
        else:
            known.add(new.images, new.question)
            items[new.id] = new
    number_of = {f"r{round}.{number}": number for number in range(len(drafts))}

    def keep(left: Sequence[Item], kind: str) -> list[Item]:
        """Those still there; the others are counted under `kind` (their reasons stand in the log already)."""
        gone.update({kind: len(items) - len(left)} if len(items) > len(left) else {})
        return list(left)

    if config.filters.grounding is not None:
        for item_id, reason in unfit(config, config.filters.grounding, out, list(items.values())).items():
            drop(number_of[item_id], item_id, "does not fit the picture", reason)
            del items[item_id]
    left = answered_well(config, out, list(items.values()), teacher, log)
    left = keep(left, "no answer worth learning")
    if config.filters.blind is not None and left:
        records = [item.record(config.seed) for item in left]
        rows = Rows(records, range(len(records)), config.seed, out / "asked")
        blind = image_need(rows, model=config.filters.blind.model_dump(), max_tokens=config.sampling.max_tokens)
        for place, reason in blind.items():
            drop(number_of[left[place].id], left[place].id, "needs no picture", reason)
        left = [item for place, item in enumerate(left) if place not in blind]
    return Grown(left, len(drafts), dict(sorted(gone.items())))


def answered_well(
    config: CompeteConfig, out: Path, items: Sequence[Item], teacher: ModelSection, log: RejectedLog
) -> list[Item]:
    """The items with the teacher's answers, those below the floor left out where the config has them checked."""
    sampling = Sampling(**config.sampling.model_dump())
    folder = out / "asked" / "teacher"
    told = answered(teacher, folder, items, sampling, log, config.reasks, "teacher", config.may_be_cut)
    return good_enough(config, out, told, log) if config.check_teacher else told


def drawn(config: CompeteConfig, round: int, items: dict[str, Item], outcomes: Sequence[Outcome]) -> list[Parent]:
    """Parents of a round's drafts: the difficult share of this round, then easy ones."""
    shares = config.augment.hard_share
    hard = int(config.augment.count * shares[min(round, len(shares)) - 1] + 0.5)
    parents = []
    for kind, count in ((Kind.HARD, hard), (Kind.EASY, config.augment.count - hard)):
        found = [outcome for outcome in outcomes if outcome.kind is kind and outcome.id in items]
        rng = random.Random(f"{config.seed}/{round}/{kind}")
        number = 0
        while found and count > 0:
            for outcome in rng.sample(found, min(count, len(found))):
                parents.append(Parent(items[outcome.id], kind is Kind.HARD, number, outcome.student))
            count, number = count - len(found), number + 1
    return parents


def unfit(config: CompeteConfig, model: ModelSection, out: Path, items: Sequence[Item]) -> dict[str, str]:
    """Why items do not fit their pictures, by id; those whose answer is known are not asked about."""
    template = prompt("compete_grounding")
    asked = [item for item in items if item.reference is None]
    requests = (
        Request(
            item.id, template.render(question=item.question), item.images, Sampling(max_tokens=300), Fit,
            prompt=str(template), license=item.license,
        )
        for item in asked
    )  # fmt: skip
    found = {}
    with open_asker(model, out / "asked" / "grounding", config.reasks) as asker:
        for answer in shown(asker.answer(requests), asker.tally, "does it fit", len(asked)):
            if not isinstance(answer.value, Fit):
                found[answer.request.id] = f"nobody could say: {answer.kind}: {answer.reason}"
            elif not answer.value.fits:
                found[answer.request.id] = answer.value.reason
    return dict(sorted(found.items()))


def _problem(draft: Draft, known: Known) -> tuple[str, str]:
    """(reason, kind), empty where there is none."""
    if draft.problem:
        return draft.problem, draft.kind
    if reason := badly_formed(draft.question):
        return reason, "form"
    if near := known.near(draft.parent.item.images, draft.question):
        return f"{draft.question!r} says {near!r} again", "near-duplicate"
    return "", ""


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
    )
