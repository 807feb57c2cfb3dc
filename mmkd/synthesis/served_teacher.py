"""`mmkd cache` with `teacher.endpoint`: a served model answers the questions of the data, and its answers are kept with
the log-probabilities of their tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmkd.compose import compose_processor
from mmkd.config.endpoint_schema import EndpointSection
from mmkd.config.schema import Config
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.collate import Collator
from mmkd.data.records import Record
from mmkd.data.rejected import BadRow, RejectedLog
from mmkd.data.teacher_rows import Rows, row_key
from mmkd.data.teacher_side import answer_runs
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.answering import Relabel, ask_all, questions
from mmkd.synthesis.bounds import left_to_ask
from mmkd.synthesis.cards import write_card
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.requests import Answer, Sampling, Status
from mmkd.synthesis.rows import open_rows, usable
from mmkd.synthesis.served_tokens import TokenMap, joined
from mmkd.teachers.checks import check_filling
from mmkd.teachers.edited import drop_edited, readable, row_digest
from mmkd.teachers.identity import Manifest, data_identity, served_identity, text_identity
from mmkd.teachers.logit_store import missing_shards, open_for_filling, write_shard
from mmkd.teachers.pairs import check_pairs
from mmkd.teachers.targets import TargetSettings

AT = "data.mixture"


def cache_served(config: Config, shard_rows: int, say: Callable[[str], None], estimate_only: bool = False) -> None:
    """Fill `teacher.store` from `teacher.endpoint`, and write the records with the endpoint's answers to
    STORE/records.jsonl, with a data card: log-probabilities are of what the endpoint says itself, so a student trains
    on those.

    What is left to ask and the most that it can cost is told before the first question; `estimate_only` stops there.
    Every reply is kept in STORE/answers before it is used, so a kill loses none and none is paid for twice.

    Raises: ConfigError under a launcher of several processes, or for an endpoint that gives no log-probabilities or
        reads no images; DataError once clearly more than 10 % of the rows cannot be used; BudgetSpent.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("an endpoint is asked by one process, many requests at a time: start mmkd cache by itself.")
    settings = check_filling(config)
    check_pairs(config)
    section, folder = config.teacher, Path(config.teacher.store)
    endpoint: EndpointSection = section.endpoint  # pyright: ignore[reportAssignmentType]
    student = compose_processor(config.student)
    mapping = TokenMap(student)
    records = open_rows(config.data.mixture)
    manifest = Manifest(
        model=endpoint.model,
        teacher=served_identity(endpoint),
        quantize=None,
        precision="served",
        image_processor="served",
        vocabulary=mapping.vocabulary,
        data=data_identity(config.data),
        rows=len(records),
        shard_rows=shard_rows,
        **text_identity(student),
        **vars(settings),
    )
    with open_asker(ModelSection(endpoint=endpoint), folder / "answers") as asker:
        if not estimate_only:
            open_for_filling(folder, manifest)
            if done := drop_edited(folder, manifest, partial(readable, records)):
                say(done)
            (folder / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier run over what it then had
        log = RejectedLog(folder / "rejected.jsonl")
        good = usable(records, log, AT)
        # No row is longer than data.max_length, and so no answer.
        sampling = Sampling(max_tokens=config.data.max_length, log_probs=settings.k)
        relabel = Relabel(asker, sampling)
        say(f"{folder}: {left_to_ask(relabel, records, good, endpoint)}")
        if estimate_only:
            return
        require_log_probs(relabel, records, good, endpoint)
        ask_all(relabel, records, good)
        served = Served(relabel, mapping, Collator(student, config.data.max_length), settings, log)
        write_jsonl(folder / "records.jsonl", served.fill(folder, records, set(good), manifest))
    facts = {"model": endpoint.model, "sampling": f"the likeliest token, at most {sampling.max_tokens} of them"}
    facts["rows without a reply yet"] = f"{served.pending:,} of {manifest.rows:,}"
    write_card(folder, "the questions of records, answered by the model whose log-probabilities are kept here", facts)
    _say(say, folder, served, manifest)


def require_log_probs(
    relabel: Relabel, records: Sequence[Record], good: Sequence[int], endpoint: EndpointSection
) -> None:
    """Raises ConfigError where the first answer shows that the endpoint gives no log-probabilities."""
    request = relabel.first(records, good)
    if request is None:
        return
    [answer] = relabel.asker.answer([request])
    none = f"{endpoint.url} gives no log-probs of {endpoint.model!r}"
    if answer.status is Status.REFUSED and "logprob" in answer.reason:
        raise ConfigError(
            f"{none} ({answer.reason}). Serve it with mmkd serve, vLLM, SGLang or llama.cpp, lower teacher.k, or "
            "train on its answers alone (mmkd answer)."
        )
    if answer.done and not answer.tokens:
        raise ConfigError(
            f"{none}: the reply has none, though they were asked for. Serve it with mmkd serve, vLLM, SGLang or "
            "llama.cpp, or train on its answers alone (mmkd answer)."
        )


@dataclass
class Served:
    """Kept answers as rows of a store.

    Attributes:
        pending: rows that got no reply yet.
    """

    relabel: Relabel
    mapping: TokenMap
    reader: Collator
    settings: TargetSettings
    log: RejectedLog
    pending: int = 0

    def fill(self, folder: Path, records: Sequence[Record], good: set[int], manifest: Manifest) -> Iterator[Record]:
        """The records that the store knows, with the endpoint's answers. Their shards, as far as every row of one is
        settled, are written to `folder` on the way: memory holds the rows of one.

        Raises: DataError where no row can be used, or clearly more than 10 % cannot.
        """
        wanted, none = set(missing_shards(folder, manifest)), True
        for number in range(manifest.shards):
            before, found, digests = self.pending, dict[bytes, Rows](), list[bytes]()
            for index in manifest.rows_of(number):
                if number in wanted:
                    digests.append(row_digest(readable(records, index)))
                if index in good and (row := self._row(records[index], index)) is not None:
                    said, key, scored = row
                    found.setdefault(key, scored)
                    none = False
                    yield said
            if self.pending == before and number in wanted:
                write_shard(folder, number, list(found.items()), digests)
        if none and not self.pending:
            raise DataError(f"none of the {len(records)} rows can be used; the reasons are in {self.log.path}.")

    def _row(self, record: Record, index: int) -> tuple[Record, bytes, Rows] | None:
        try:
            answers, missing, lost = self.relabel.answers(record, len(questions(record)))
            if lost:
                self.pending += 1
                return None
            if not answers:
                raise missing or BadRow("it asks no question.", "no question")
            said = self.relabel.relabelled(record, questions(record), [answer.text.strip() for answer in answers])
            key, scored = self._scored(said, answers)
        except BadRow as error:
            self.log.reject(AT, index, record.id, error)
            return None
        if missing is not None:
            self.log.note(AT, index, record.id, missing)
        return said, key, scored

    def _scored(self, record: Record, answers: Sequence[Answer]) -> tuple[bytes, Rows]:
        sample = self.reader.prepare(record)
        rows = []
        for run, answer in zip(answer_runs(sample.answer), answers):  # what did not fit max_length has no run
            if answer.tokens is None:
                raise BadRow("the endpoint gave no log-probs with this answer.", "no log-probs")
            rows.append(self.mapping.rows(sample.ids[run.start : run.stop], answer.tokens, self.settings))
        return row_key(record.images, sample.ids, sample.answer), joined(rows)


def _say(say: Callable[[str], None], folder: Path, served: Served, manifest: Manifest) -> None:
    if served.mapping.strange:
        [(token, times)] = served.mapping.strange.most_common(1)
        say(
            f"{sum(served.mapping.strange.values()):,} of the likely tokens are none of the student's, e.g. {token!r} "
            f"({times:,} times): their mass is among that of all others."
        )
    if served.pending:
        raise DataError(
            f"{served.pending:,} of {manifest.rows:,} rows got no reply; the same command asks for them again."
        )
    say(f"train on data.mixture: [{{source: jsonl, path: {folder / 'records.jsonl'}}}], whose answers the store knows")
