"""What the order of two answers does to a judge: SmolLM2-135M, which sees no image but is told the right answer.

    python -m bench.judge_orders runs/judge-orders

For each seed: questions of EasyVQA with a right answer and a wrong one of the same kind, each pair graded in both
orders (mmkd/synthesis/judging/judge.py). Replies are kept, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from bench.rows import RESULTS, Row, append, config_hash, surroundings
from mmkd.config.schema import SourceSection
from mmkd.config.synthesis_schema import LanguageModelSection, ModelSection
from mmkd.data.sources import open_source
from mmkd.synthesis.judging.graded import WrongAnswers, graded
from mmkd.synthesis.judging.judge import Item, Judge
from mmkd.synthesis.judging.scales import CORRECTNESS
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.progress import followed
from mmkd.synthesis.requests import Sampling

BENCH = "judge_orders"
JUDGE = ModelSection(language=LanguageModelSection(source="gguf:smollm2-135m", batch_size=20))
SAMPLING = Sampling(temperature=0.0, max_tokens=160)
DATA = SourceSection.model_validate({"source": "easyvqa", "split": "train", "turns": None})
UNITS = {
    "disagreed": "% of pairs", "first_gain": "points", "preferred": "% of pairs", "preferred_once": "% of orders",
    "unscored": "% of pairs", "pairs": "pairs",
}  # fmt: skip


def drawn(pairs: int, seed: int) -> list[Item]:
    """So many questions, the right answer first in half of them."""
    source = open_source(DATA, at="data")
    places = random.Random(seed).sample(range(len(source)), pairs)
    wrong = WrongAnswers(source[place] for place in range(len(source)))
    found = graded((source[place] for place in places), wrong, 1, [], CORRECTNESS, seed)
    items = []
    for number, (question, both) in enumerate(groupby(found, lambda one: one.question)):
        kinds = {one.kind: one.item for one in both}
        if set(kinds) == {"right", "wrong"}:
            names = ("right", "wrong") if number % 2 == 0 else ("wrong", "right")
            answers = tuple(kinds[name].answers[0] for name in names)
            right = kinds["right"]
            items.append(Item(f"{names[0]} first/{question}", right.question, answers, (), right.reference))
    return items


def of_seed(out: Path, pairs: int, seed: int) -> dict[str, float]:
    """Shares of pairs whose winner the order decides, in which the right answer wins (draws count half) by the mean of
    both orders and by one order alone, and the points that standing first is worth."""
    items = drawn(pairs, seed)
    with open_asker(JUDGE, out) as asker:
        judge = Judge(asker, sampling=SAMPLING)
        verdicts = list(followed(judge.judge(items), "grading", len(items)))
    both, once = [], []
    for one in verdicts:
        if one.scores is None:
            continue
        right = 0 if one.item.id.startswith("right") else 1
        both.append(_won(one.scores, right))
        once += [_won(scores, right) for scores in one.orders]
    return {
        "disagreed": 100 * judge.bias.disagreed / judge.bias.compared,
        "first_gain": judge.bias.first_gain / judge.bias.compared,
        "preferred": 100 * statistics.fmean(both),
        "preferred_once": 100 * statistics.fmean(once),
        "unscored": 100 * (len(verdicts) - len(both)) / len(verdicts),
        "pairs": len(verdicts),
    }


def _won(scores: Sequence[float], right: int) -> float:
    return (scores[right] > scores[1 - right]) + (scores[right] == scores[1 - right]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judge_orders", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the replies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds that draw the pairs")
    parser.add_argument("--pairs", type=int, default=40, help="questions of a seed")
    asked = parser.parse_args()
    around, command = surroundings(), f"python -m bench.judge_orders {asked.out} --pairs {asked.pairs}"
    found = [of_seed(asked.out, asked.pairs, seed) for seed in asked.seeds]
    digest = config_hash(JUDGE, DATA, {"sampling": repr(SAMPLING), "pairs": asked.pairs})
    rows = []
    for name, unit in UNITS.items():
        values = [one[name] for one in found]
        spread = statistics.stdev(values) if len(values) > 1 else None
        mean, seeds = statistics.fmean(values), tuple(asked.seeds)
        rows.append(Row(BENCH, f"{name}@SmolLM2-135M", mean, unit, seeds, spread, "labels", command, digest, **around))
        print(f"{name:<16} {mean:>8.2f} {unit}" + (f" ± {spread:.2g}" if spread is not None else ""))
    append(rows, RESULTS)


if __name__ == "__main__":
    main()
