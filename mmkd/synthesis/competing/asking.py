"""One model's answers to items."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.on_disk import ById, Made, Spool
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.paid import Purse
from mmkd.synthesis.progress import shown
from mmkd.synthesis.raised import as_known
from mmkd.synthesis.replies import CUT_OFF, EMPTY
from mmkd.synthesis.requests import Request, Sampling, Status


def open_role(model: ModelSection, asked: Path, role: str, reasks: int, purse: Purse | None = None) -> Asker:
    """The model of a role, e.g. judge, with its store in `asked`/`role`. A step that asks it is closed only when every
    request has been replied to (`Misses.require_replies`), and what it was paid in other roles counts, too.

    Args:
        purse: of `asked`, where several roles are open at once.
    """
    return open_asker(model, asked / role, reasks, all_replied=True, shared_budget=True, purse=purse)


def answered(
    model: ModelSection,
    asked: Path,
    items: Sequence[Item],
    sampling: Sampling,
    log: RejectedLog,
    reasks: int,
    who: str,
    may_be_cut: bool = False,
    may_be_empty: bool = False,
    limits: Sequence[int] = (),
) -> Sequence[Item]:
    """The items, in their order, with the model's answers in them; those without one are written to the log. Answers
    are put on disk as they come, and read when they are asked for.

    Args:
        asked: folder of the stores that keep the answers, one for each role.
        who: the role, teacher or student.
        may_be_cut: whether an answer that ran into max_tokens is one.
        may_be_empty: whether saying nothing, asked `reasks` times more, is an answer: of a student, it is.
        limits: earlier values of max_tokens, see `as_known`.

    Raises: what `Asker.answer` raises; DataError once `too_many` items have no answer; ConfigError
        for a server that does not read pictures.
    """
    if not items:
        return []
    replies, begun = Spool(len(items)), dict[str, int]()  # begun: numbers of those on their way

    def requests() -> Iterator[Request]:
        for number, item in enumerate(items):
            begun[item.id] = number
            yield as_known(asker, replace(item.request(sampling), may_be_cut=may_be_cut), limits)

    with open_role(model, asked, who, reasks) as asker:
        for answer in shown(asker.answer(requests()), asker.tally, f"{who} answers", len(items)):
            wordless = answer.kind == EMPTY or (may_be_cut and answer.kind == CUT_OFF)  # cut after a word, it is done
            silent = may_be_empty and answer.status is Status.REJECTED and wordless
            good = answer.done or silent
            said = [answer.text.strip(), answer.model] if good else [answer.reason, answer.kind]
            replies.put(begun.pop(answer.request.id), [good, *said])
        license = asker.backend.license
    kept = array("q")
    for index, item in enumerate(items):  # not as they came: what is written must not hang on that
        good, *said = replies.get(index)
        if not good:
            log.reject(who, index, item.id, BadRow(f"no answer of the {who}: {said[0]}", said[1]))
            continue
        log.good()
        kept.append(index)

    def with_answer(index: int) -> Item:
        _, text, name = replies.get(index)
        return replace(items[index], answer=text, model=name, answer_license=license)

    return Made(kept, with_answer)


class Said(Mapping[str, str]):
    """The answers of items, by id; read anew each time."""

    def __init__(self, items: Sequence[Item]):
        self._items = ById(items)

    def __getitem__(self, name: str) -> str:
        return self._items[name].answer

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
