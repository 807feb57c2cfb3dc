"""One model's answers to items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.synthesis.competing.items import Item
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import shown
from mmkd.synthesis.replies import EMPTY
from mmkd.synthesis.requests import Answer, Sampling, Status


def answered(
    model: ModelSection,
    folder: Path,
    items: Sequence[Item],
    sampling: Sampling,
    log: RejectedLog,
    reasks: int,
    who: str,
    may_be_cut: bool = False,
    may_be_empty: bool = False,
) -> list[Item]:
    """The items, in their order, with the model's answers in them; those without one are written to the log.

    Args:
        folder: of the store that keeps the answers.
        who: teacher or student, for messages.
        may_be_cut: whether an answer that ran into max_tokens is one.
        may_be_empty: whether saying nothing, asked `reasks` times more, is an answer: of a student, it is.

    Raises: what `Asker.answer` raises; DataError once more than 10 % of at least 50 items have no answer; ConfigError
        for a server that does not read pictures.
    """
    if not items:
        return []
    answers: dict[str, Answer] = {}
    with open_asker(model, folder, reasks) as asker:
        check = ImageCheck(model.endpoint)
        requests = [replace(item.request(sampling), may_be_cut=may_be_cut) for item in items]
        check.probe(asker, next((request for request in requests if request.images), None))
        for answer in shown(asker.answer(requests), asker.tally, f"{who} answers", len(items)):
            check.check(answer)
            answers[answer.request.id] = answer
        license = asker.backend.license
    kept = []
    for index, item in enumerate(items):  # not as they came: what is written must not hang on that
        answer = answers[item.id]
        silent = may_be_empty and answer.status is Status.REJECTED and answer.kind == EMPTY
        if not answer.done and not silent:
            log.reject(who, index, item.id, BadRow(f"no answer of the {who}: {answer.reason}", answer.kind))
            continue
        log.good()
        kept.append(replace(item, answer=answer.text.strip(), model=answer.model, answer_license=license))
    return kept
