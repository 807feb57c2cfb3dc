"""Students of finished competitions on the held-out questions as templates ask them, and in other words.

    python -m bench.other_words runs/competed-reworded

Both readings are of the questions whose wording by the rewriter of scenes/compete is taken for the same question
(`rewording.objection`), and of each competition's last student. No competition has seen these pictures.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.competed import configured
from bench.rows import RESULTS, Row, config_hash, surroundings
from bench.scores import add_new, conclude
from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.synthesis_schema import ModelSection, VlmSection
from mmkd.data.rejected import RejectedLog
from mmkd.synthesis.competing.asking import answered, open_role
from mmkd.synthesis.competing.augmentors.rewriting import SAMPLING
from mmkd.synthesis.competing.items import Item, read_items
from mmkd.synthesis.judging.judge import Item as Judged
from mmkd.synthesis.judging.labels import LabelScorer
from mmkd.synthesis.progress import shown
from mmkd.synthesis.requests import Sampling
from mmkd.synthesis.rewording import rewording_request, worded

BENCH = "competed_words"
ENDED = ["pretraining=null", "start=given"]  # of no matter to a competition that has ended


def in_other_words(items: Sequence[Item], model: ModelSection, out: Path) -> list[Item]:
    """Those that the model can put in other words, in these, each with a seed of its own."""
    requests = [rewording_request(item.id, item.question, replace(SAMPLING, seed=n)) for n, item in enumerate(items)]
    with open_role(model, out / "asked", "rewrite", reasks=0) as asker:
        answers = {one.request.id: one for one in shown(asker.answer(requests), asker.tally, "other words", len(items))}
    said = ((item, worded(item.question, answers[item.id])) for item in items)
    return [replace(item, template=item.question, question=one.question) for item, one in said if not one.objection]


def score(config: CompeteConfig, student: Path, items: Sequence[Item], out: Path) -> float:
    """The student's mean by the labels, 1 to 10."""
    reading = config.student
    model = ModelSection(vlm=VlmSection(model=str(student), tokens=reading.tokens, batch_size=reading.batch_size))
    sampling, log = Sampling(**config.sampling.model_dump()), RejectedLog(out / "rejected.jsonl")
    said = answered(model, out / "asked", items, sampling, log, config.reasks, "student", True, True)
    judged = (Judged(one.id, one.question, (one.answer,), tuple(one.images), one.reference) for one in said)
    scores = [verdict.scores[0] for verdict in LabelScorer().judge(judged) if verdict.scores is not None]
    if len(scores) != len(items):
        raise SystemExit(f"{len(items) - len(scores)} of {len(items)} questions have no score; see {out}")
    return statistics.fmean(scores)


def main(asked: argparse.Namespace) -> None:
    out = asked.runs / "words"
    first = asked.runs / f"{asked.cases[0]}-{asked.seeds[0]}"
    packaged = configured(first, "reworded", asked.seeds[0], ENDED)
    told = in_other_words(
        read_items(first / "given" / "held_out.jsonl"),
        ModelSection.model_validate(packaged.augment.options()["rewrite"]),
        out,
    )
    readings = {"words=other": told, "words=templates": [replace(item, question=item.template) for item in told]}
    print(f"{len(told)} held-out questions in other words, e.g. {told[0].template} -> {told[0].question}")
    for seed in asked.seeds:
        for case in asked.cases:
            run = asked.runs / f"{case}-{seed}"
            config = configured(run, case, seed, ENDED)
            student = run / f"round-{config.rounds}" / "student" / "model"
            digest = config_hash(config.model_dump(mode="json", exclude={"out", "seed"}))
            around, command = surroundings(), f"python -m bench.other_words {asked.runs}"
            for reading, items in readings.items():
                metric, value = f"score@{case} {reading} seed {seed}", score(config, student, items, out)
                row = Row(f"{BENCH}_seeds", metric, value, "points", (seed,), None, None, command, digest, **around)
                add_new(BENCH, [row], asked.results)
    conclude(BENCH, [tuple(asked.cases)] if len(asked.seeds) > 1 else [], ["score"], asked.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.other_words", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the competitions, CASE-SEED")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs=2, default=["reworded", "competition"], help="the cases to compare")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    main(parser.parse_args())
