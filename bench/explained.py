"""What students of rationales make of them: `python -m bench.explained runs/rationales`, after bench.rationales.

For each seed, *direct* is how often the student of `plain` answers test questions rightly at once, *explained* how
often its own explanation ends in the right answer. Of the student of `rationales`: its cross-entropy at the tokens of
rationales of its training rows, at digits of boxes and elsewhere.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from bench.rows import RESULTS, Row, config_hash, surroundings
from bench.scores import add_new, conclude
from mmkd.compose import load
from mmkd.config.load import load_config
from mmkd.config.synthesis_schema import VlmSection
from mmkd.data.collate import Collator
from mmkd.data.rationales import EXPLAIN
from mmkd.data.record_files import jsonl
from mmkd.data.records import Record, Turn
from mmkd.data.scenes import records
from mmkd.synthesis.backends import Call, Completion
from mmkd.synthesis.local_models import vlm
from mmkd.synthesis.requests import Sampling
from mmkd.teachers.reading import answer_batch, prefixes, read_outputs, vision

BENCH = "explained"
TOGETHER = 40  # questions of a batch
READINGS = {"k=1": 1, "full": None}
Figure = tuple[str, float, str]


def answers(run: Path, asked: Sequence[Record]) -> Iterator[Figure]:
    """Per cent of the questions that are answered rightly, at once and behind an explanation."""
    truth = [one.turns[1].text.lower() for one in asked]
    for reading, tokens in READINGS.items():
        student = vlm(VlmSection(model=str(run / "model"), tokens=tokens or "full", batch_size=TOGETHER, license=None))

        def said(text: str, most: int, student=student) -> list[str]:
            drawn = Sampling(max_tokens=most)
            calls = [Call(one.id, (Turn("user", one.turns[0].text + text),), tuple(one.images), drawn) for one in asked]
            batches = (calls[at : at + TOGETHER] for at in range(0, len(calls), TOGETHER))
            found = (one for batch in batches for one in student.generate(batch))
            return [one.text.strip().lower() if isinstance(one, Completion) else "" for one in found]

        explained = (re.search(r"so the answer is ([^.]*)\.$", one) for one in said(f" {EXPLAIN}", 160))
        right = {
            "direct": [one == label for one, label in zip(said("", 16), truth, strict=True)],
            "explained": [one is not None and one[1] == label for one, label in zip(explained, truth, strict=True)],
        }
        for what, values in right.items():
            yield f"{what}@plain {reading}", 100 * sum(values) / len(values), "% of questions"


def losses(run: Path, rows: Sequence[Record]) -> Iterator[Figure]:
    """Cross-entropy and accuracy at digits of boxes and at other tokens of rationales, and the digits' share."""
    config, composed = load_config(run), load(str(run / "model"), torch.float32)
    model, tokenizer = composed.model.eval(), composed.processor.tokenizer
    collator = Collator(composed.processor, config.data.max_length, rationales=config.data.rationales)
    for reading, tokens in READINGS.items():
        found: dict[bool, list[tuple[float, bool]]] = {True: [], False: []}
        for at in range(0, len(rows), 6):
            batch = collator(rows[at : at + 6]) | {"normalizer": 1.0}
            with torch.inference_mode():
                asked, (features, _) = answer_batch(batch), vision(model, batch)
                [(_, prefix)] = prefixes(model, features, batch, [tokens])
                log_probs = torch.log_softmax(model.head(read_outputs(model, prefix, batch, asked).answer_hidden), -1)
            twins = batch["readers"] != torch.arange(len(batch["input_ids"])) if "readers" in batch else None
            if twins is None:  # no rationale among these
                continue
            inside, before = False, -1
            for row, token, scores in zip(asked.rows.tolist(), asked.answer_ids.tolist(), log_probs, strict=True):
                text = tokenizer.decode([token])
                inside = "[" in text or (inside and row == before and "]" not in text)
                before = row
                if twins[row]:
                    digit = inside and text.strip().isdigit()
                    found[digit].append((-float(scores[token]), int(scores.argmax()) == token))
        for digit, name in ((True, "digits"), (False, "others")):
            values = found[digit]
            yield f"{name}_ce@rationales {reading}", sum(ce for ce, _ in values) / len(values), "nats"
            yield f"{name}_right@rationales {reading}", 100 * sum(right for _, right in values) / len(values), "%"
        total = {digit: sum(ce for ce, _ in values) for digit, values in found.items()}
        count = len(found[True]) + len(found[False])
        yield f"digits_share@rationales {reading}", 100 * len(found[True]) / count, "% of tokens"
        yield f"digits_loss@rationales {reading}", 100 * total[True] / sum(total.values()), "% of the loss"


def compared(asked: argparse.Namespace) -> None:
    """Append what has no row yet, and means over seeds."""
    questions = records("test", -(-asked.questions // 10), 0, 2)[: asked.questions]  # ten a scene
    around, command = surroundings(), f"python -m bench.explained {asked.runs}"
    digest = config_hash({"questions": asked.questions, "rows": asked.rows})
    for seed in asked.seeds:
        rows = list(islice(jsonl(str(asked.runs / "rows" / f"rationales-{seed}.jsonl")), asked.rows))
        figures = [*answers(asked.runs / f"plain-{seed}", questions), *losses(asked.runs / f"rationales-{seed}", rows)]
        add_new(BENCH, [
            Row(f"{BENCH}_seeds", f"{name} seed {seed}", value, unit, (seed,), None, None, command, digest, **around)
            for name, value, unit in figures
        ], asked.results)  # fmt: skip
    conclude(BENCH, [], results=asked.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.explained", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of bench.rationales")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=400, help="of the test split")
    parser.add_argument("--rows", type=int, default=100, help="training rows whose rationales are read")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    compared(parser.parse_args())
