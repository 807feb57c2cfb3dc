"""Cases that differ in what a row asks alone: rows of the same images in the same order, with as many text tokens."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from bench.rows import RESULTS, Row, config_hash, surroundings
from bench.runs import METRICS, scored, trained
from bench.scores import add_new, conclude, of_run
from mmkd.compose import compose_processor
from mmkd.config.load import load_config
from mmkd.config.schema import Config
from mmkd.data.images import read_image
from mmkd.data.rationales import views
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import DataError
from mmkd.report.run_folder import read_metrics
from mmkd.whole_files import write_whole

NEAR = 0.001  # how far all rows may be from their budget, beside what the longest of them holds

T = TypeVar("T")  # a question, in whatever form
Asked = tuple[Turn, Turn]  # a question and its answer
Count = Callable[[Sequence[Asked]], int]  # text tokens of a row that asks these


@dataclass(frozen=True)
class Picture:
    """An image, the record it is of, and what a case may ask about it."""

    record: Record
    asked: list[Asked]


@dataclass(frozen=True)
class Case:
    """One run: its folder, the overrides of scenes/read that it trains with, and what its rows hold."""

    name: str
    seed: int
    run: Path
    training: list[str]
    holds: dict[str, int]


def count_of(training: Config) -> Count:
    """Of a student and its data section; rationales count where they are trained on."""
    processor = compose_processor(training.student)
    told = training.data.rationales

    def count(asked: Sequence[Asked]) -> int:
        turns = list(chain.from_iterable(asked))
        chats = [turns] if told is None else [view.turns for view in views(turns, told.mode)]
        said = ([{"role": turn.role, "content": turn.text} for turn in chat] for chat in chats)
        return sum(len(processor.encode_turns(chat)[0]) for chat in said)

    return count


def by_question(count: Count) -> Count:
    """`count` by sums over the questions of a row, each of which is read once.

    Exact where a template adds as many tokens between any two questions, as ours do.
    """
    known: dict[tuple[str, str, str | None], int] = {}
    less: list[int] = []  # a row has one beginning and one end, two rows have two

    def alone(one: Asked) -> int:
        question, answer = one
        key = question.text, answer.text, answer.rationale
        if key not in known:
            known[key] = count([one])
        return known[key]

    def added(asked: Sequence[Asked]) -> int:
        if not asked:
            return count(asked)
        if not less:
            less.append(2 * alone(asked[0]) - count([asked[0], asked[0]]))
        return sum(map(alone, asked)) - less[0] * (len(asked) - 1)

    return added


def filled(
    questions: Sequence[Sequence[T]],
    rows: int,
    budget: float,
    count: Callable[[Sequence[T]], int],
    seed: int,
) -> Iterator[tuple[int, list[T]]]:
    """(image, questions) of each row: `budget` text tokens a row, on the average of all rows so far.

    Images take turns in an order drawn anew for each pass, the same for the same seed whatever they are asked. An
    image's questions come in a drawn order too, all of them before one comes again. A row takes the next one where that
    brings the tokens of all rows nearer to the budget, so what one row lacks the next ones make good.

    Args:
        questions: of each image. count: text tokens of a row that asks these.
    """
    order, waiting = list(range(len(questions))), [list[T]() for _ in questions]
    spent = 0
    for row in range(rows):
        if row % len(order) == 0:
            random.Random(f"{seed}/images/{row}").shuffle(order)
        image = order[row % len(order)]
        asked: list[T] = []
        used = 0
        while len(asked) < len(questions[image]):
            if not waiting[image]:
                again = random.Random(f"{seed}/{row}").sample(questions[image], len(questions[image]))
                waiting[image] = sorted(again, key=lambda one: one not in asked)  # taken from the end
            with_next = count([*asked, waiting[image][-1]])
            now, then = (abs(spent + tokens - (row + 1) * budget) for tokens in (used, with_next))
            if asked and now <= then:
                break
            asked.append(waiting[image].pop())
            used = with_next
        spent += used
        yield image, asked


def prepared(
    out: Path,
    bench: str,
    name: str,
    seed: int,
    pictures: Sequence[Picture],
    settings: Sequence[str],
    budget: float,
    count: Count | None = None,
) -> Case:
    """A case with its rows in OUT/rows, one for each that scenes/read with these settings takes.

    Args:
        budget: tokens of a row. count: by which rows are filled; by default the run's own.

    Raises: DataError where the rows cannot be brought to the budget.
    """
    label = f"{name.replace(' ', '-')}-{seed}"
    file, counts = out / "rows" / f"{label}.jsonl", out / "rows" / f"{label}.json"
    training = [f"data.mixture=[{{source: jsonl, path: {file}}}]", *settings]
    if not counts.exists():
        config = load_config("scenes/read", training)
        (stage,) = config.stages
        own = by_question(count_of(config))  # `learned` holds it against what the run counts
        filling_by = own if count is None else by_question(count)
        rows = list(filled([one.asked for one in pictures], stage.steps * stage.batch_size, budget, filling_by, seed))
        each = [filling_by(asked) for _, asked in rows]
        filling = sum(each)
        if abs(filling - budget * len(rows)) > NEAR * budget * len(rows) + max(each):  # images ran out of questions
            raise DataError(
                f"{name}: {len(rows):,} rows of {len(pictures):,} images hold {filling:,} tokens, not the "
                f"{budget * len(rows):,.0f} of every case. Take more questions of an image, or more steps."
            )
        write_jsonl(file, _records(file.parent / "images", bench, name, pictures, rows))
        holds = {"questions": sum(len(asked) for _, asked in rows), "tokens": sum(own(asked) for _, asked in rows)}
        write_whole(counts, [json.dumps(holds)])
    return Case(name, seed, out / label, training, json.loads(counts.read_text()))


def _records(
    images: Path, bench: str, name: str, pictures: Sequence[Picture], rows: Sequence[tuple[int, list[Asked]]]
) -> Iterator[Record]:
    for number, (place, asked) in enumerate(rows):
        of = pictures[place].record
        image = read_image(of.images[0])
        picture = images / hashlib.sha256(image).hexdigest()[:16]
        if not picture.exists():
            images.mkdir(parents=True, exist_ok=True)
            write_whole(picture, [image])
        origin = Provenance(parent=of.id, engine=of.provenance.engine, license=of.provenance.license)
        yield Record(f"{number}", list(chain.from_iterable(asked)), [str(picture)], name, bench, origin)


def learned(case: Case, ranks: int) -> Path:
    """The run of a case. Raises DataError where it did not train on the tokens it was given."""
    run = trained("train", "scenes/read", case.run, case.seed, case.training, ranks)
    seen = sum(metric.values["tokens"] for metric in read_metrics(run / "metrics.jsonl"))
    if seen != case.holds["tokens"]:
        raise DataError(
            f"{run}: metrics.jsonl counts {seen:,.0f} tokens, its rows hold {case.holds['tokens']:,}. The steps have "
            "to be a multiple of training.log_every, and no row may be set aside (rejected.jsonl)."
        )
    return run


def measure(
    bench: str, cases: Sequence[Case], pairs: Sequence[tuple[str, str]], command: str, asked: argparse.Namespace
) -> None:
    """Train and score every case, append what has no row yet, means, and what the first of a pair gains.

    Args:
        asked: of a parser with `add_options`.
    """
    for case in cases:
        run = learned(case, asked.ranks)
        scored(run, [1, "full"], limit=asked.limit)
        rows = [row for metric in METRICS for row in of_run(bench, case.name, run, metric)]
        add_new(bench, [*rows, *of_counts(bench, case, command)], asked.results)
    whole = [pair for pair in pairs if set(pair) <= set(asked.cases)]
    conclude(bench, whole if len(asked.seeds) > 1 else [], METRICS, asked.results)


def add_options(parser: argparse.ArgumentParser, cases: Sequence[str]) -> None:
    """What the benches of such cases have in common."""
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--start", required=True, help="model folder that every student starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of data and training")
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases), help="what to train on")
    parser.add_argument("--training", nargs="+", default=[], metavar="PATH=VALUE", help="overrides of scenes/read")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a training")
    parser.add_argument("--limit", type=int, help="score the first questions only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")


def of_counts(bench: str, case: Case, command: str) -> list[Row]:
    """What a run was trained on: `trained_tokens@CASE seed N` and questions."""
    digest, around = config_hash(load_config(case.run).model_dump(mode="json", exclude={"run"})), surroundings()
    return [
        Row(
            f"{bench}_seeds", f"trained_{name}@{case.name} seed {case.seed}", case.holds[name], name, (case.seed,),
            None, None, command, digest, **around,
        )
        for name in ("tokens", "questions")
    ]  # fmt: skip
