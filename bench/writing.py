"""What holding a writer to the grammar does to its samples: how many pass the check, run, and are right."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from bench.token_losses import Figure
from mmkd.config.synthesis_schema import LanguageModelSection
from mmkd.data.images import open_image
from mmkd.data.records import Record
from mmkd.data.scenes import records
from mmkd.errors import DataError
from mmkd.synthesis.backends import Call
from mmkd.synthesis.programs.answers import score
from mmkd.synthesis.programs.grammar import gbnf
from mmkd.synthesis.programs.making.writing import Prompts, source_in
from mmkd.synthesis.programs.reasons import Verdict
from mmkd.synthesis.programs.runner import Outcome, Runner
from mmkd.synthesis.requests import Completion, Sampling

EXAMPLES, MOST_TOKENS = 5, 160  # as mmkd programs has them


def writing_figures(
    writer: str, questions: int, samples: int, temperature: float, seed: int, batch: int
) -> Iterator[Figure]:
    """Shares of samples, free and held, each pair from one seed; one question an image, on which its programs run."""
    from mmkd.synthesis.local_models import language_model  # torch

    asked = distinct(questions, seed)
    model = language_model(LanguageModelSection(source=writer, batch_size=batch))
    with Runner() as runner:
        prompts = Prompts(runner.tools, EXAMPLES)
        grammars = {"free": "", "held": gbnf(runner.tools)}
        found: dict[str, Counter[str]] = {name: Counter() for name in grammars}
        seconds = dict.fromkeys(grammars, 0.0)
        work = [(record, seed + sample) for record in asked for sample in range(samples)]
        for start in range(0, len(work), batch):
            rows = work[start : start + batch]
            for name, grammar in grammars.items():
                drawn = Sampling(temperature, max_tokens=MOST_TOKENS, grammar=grammar)
                calls = [
                    Call("writing", prompts.turns(record.turns[0].text), (), replace(drawn, seed=n))
                    for record, n in rows
                ]
                began = time.perf_counter()
                replies = model.generate(calls)
                seconds[name] += time.perf_counter() - began
                for (record, _), reply in zip(rows, replies, strict=True):
                    if not isinstance(reply, Completion):
                        raise DataError(f"{writer} gives no sample: {reply}")
                    found[name].update(_seen(runner, record, reply))
    for name, counts in found.items():
        for what in ("whole", "passed", "ran", "right"):
            yield f"{what}@{name}", 100 * counts[what] / len(work), "% of samples", None, None
        yield f"seconds@{name}", seconds[name] / len(work), "s", None, None
    yield "samples", len(work), "samples", None, None


def distinct(count: int, seed: int) -> list[Record]:
    """Rows with different questions, of each type in turn."""
    found: dict[str, dict[str, Record]] = {}
    for record in records("train", 40 * count, seed, questions=5, single=True):
        found.setdefault(record.task, {}).setdefault(record.turns[0].text, record)
    kinds = [list(rows.values()) for rows in found.values()]
    turns = [rows[place] for place in range(count) for rows in kinds if place < len(rows)]
    return turns[:count]


def _seen(runner: Runner, record: Record, reply: Completion) -> list[str]:
    question, label = record.turns[0].text, record.turns[1].text
    outcome: Outcome = runner.run(source_in(reply.text), open_image(record.images[0]), question)
    seen = ["whole"] if reply.finish == "stop" else []
    if outcome.verdict is not Verdict.REFUSED:
        seen.append("passed")
    if outcome.verdict is Verdict.RAN:
        seen += ["ran", *(["right"] if score(outcome.answer, label) == 1 else [])]
    return seen
