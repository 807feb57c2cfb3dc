"""A teacher that processes images by itself, or reads records by its own template and tokens too; and where those meet
the student's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.data.byte_spans import Span, align, byte_table, ids_by_bytes
from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError
from mmkd.models.processing_mmkd import MmkdProcessor

Encoded = tuple[list[int], list[int]]  # ids of a chat's text, and 1 where the assistant speaks


class TeacherSide:
    """What joins the two sides' readings of a record.

    Args:
        student, teacher: processors; image processing may differ, and with `own_tokens` templates and tokenizers.
        own_tokens: whether it reads tokens of its own; else it reads the student's.

    Attributes:
        processor: the teacher's.
        own_images: whether it turns an image into other tensors than the student's does.

    Raises: ConfigError for a tokenizer whose tokens cannot be read as bytes.
    """

    def __init__(self, student: MmkdProcessor, teacher: MmkdProcessor, own_tokens: bool = True):
        self.processor, self.own_tokens = teacher, own_tokens
        self.own_images = student.fingerprint != teacher.fingerprint
        if not own_tokens:
            return
        self._processors = student, teacher
        self._tables = byte_table(student.tokenizer), byte_table(teacher.tokenizer)
        try:
            self._ends = student.answer_end, teacher.answer_end
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def shared_ids(self) -> Tensor:
        """[2, m], ids of the student and of the teacher: tokens of the same bytes, and the two that end an answer."""
        ours, theirs = (ids_by_bytes(processor.tokenizer) for processor in self._processors)
        pairs = [(ours[token], theirs[token]) for token in ours.keys() & theirs.keys()]
        if None not in self._ends:
            pairs.append(self._ends)
        return torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T.contiguous()

    def spans(self, student: Encoded, teacher: Encoded) -> list[tuple[int, int, bool]]:
        """Where the answers of one record meet: (student's token, teacher's token, both are one and the same token).

        Raises: BadRow where the answers are not the same text on both sides.
        """
        turns = [answer_runs(answer) for _, answer in (student, teacher)]
        if len(turns[0]) != len(turns[1]):
            raise _unaligned(
                f"the student's template tells {len(turns[0])} answers apart, the teacher's {len(turns[1])}"
            )
        found = []
        for ours, theirs in zip(*turns, strict=True):
            tokens = [
                [table[i] for i in ids[run.start : run.stop]]
                for table, (ids, _), run in zip(self._tables, (student, teacher), (ours, theirs), strict=True)
            ]
            try:
                spans = align(*tokens)
            except ValueError as error:
                raise _unaligned(str(error).rstrip(".")) from error
            for span in spans:
                start = ours.start + span.student[0], theirs.start + span.teacher[0]
                found.append((*start, self._matched(span, *tokens, student[0][start[0]], teacher[0][start[1]])))
        return found

    def _matched(self, span: Span, ours: list[bytes], theirs: list[bytes], *ids: int) -> bool:
        (a, b), (c, d) = span.student, span.teacher
        return b - a == d - c == 1 and ours[a] == theirs[c] and (bool(ours[a]) or ids == self._ends)


def answer_runs(answer: Sequence[int]) -> list[range]:
    """Places of each answer, one after the other."""
    runs, start = [], 0
    for flag, group in itertools.groupby(answer):
        stop = start + len(list(group))
        if flag:
            runs.append(range(start, stop))
        start = stop
    return runs


def _unaligned(found: str) -> BadRow:
    return BadRow(
        f"student and teacher do not read the same answer: {found}. A tokenizer that normalises text, or a template "
        "that changes answers, does that; write the answer in plain characters, or choose another student.template.",
        "answers not aligned",
    )
