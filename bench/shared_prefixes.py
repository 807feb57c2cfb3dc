"""What it saves to read once what the prompts of a batch begin with: questions put in other words by SmolLM2 here.

    python -m bench.shared_prefixes    # on an idle machine

Questions of scenes, a different one each time, with the instruction and the examples of `rewording_request`, which are
four fifths of a prompt, and differ by how a question begins. With and without take turns on the same requests; a ratio
is of one turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.rows import RESULTS, Row, append, config_hash, surroundings
from mmkd.config.synthesis_schema import LanguageModelSection
from mmkd.data.scene_questions import COLORS, SHAPES
from mmkd.synthesis.backends import Call
from mmkd.synthesis.competing.augmentors.rewriting import SAMPLING
from mmkd.synthesis.local import LocalModel
from mmkd.synthesis.local_models import language_model
from mmkd.synthesis.rewording import rewording_request

BENCH = "shared_prefixes"
FORMS = (
    "how many {0} {1}s are there?", "is there a {0} {1}?", "are there more {0} shapes than {2} shapes?",
    "what shape is left of the {0} {1}?", "is there a {0} {1} above the {2} {3}?",
)  # fmt: skip


def calls(count: int, seed: int) -> list[Call]:
    rng = random.Random(seed)
    found: dict[str, Call] = {}
    while len(found) < count:
        things = [name for _ in range(2) for name in (rng.choice(COLORS), rng.choice(SHAPES))]
        text = rng.choice(FORMS).format(*things)
        found[text] = Call(text, rewording_request(text, text, SAMPLING).turns, (), SAMPLING)
    return list(found.values())


def seconds(model: LocalModel, asked: Sequence[Call], batch_size: int) -> float:
    """Of one request."""
    started = time.perf_counter()
    for first in range(0, len(asked), batch_size):
        model.generate(asked[first : first + batch_size])
    return (time.perf_counter() - started) / len(asked)


def main(asked: argparse.Namespace) -> None:
    around, rows = surroundings(), []  # before anything is measured: the commit that runs
    torch.set_num_threads(asked.threads)
    model = language_model(LanguageModelSection(source="gguf:smollm2-135m"))
    once = model._read_once
    seconds(model, calls(8, -1), 8)
    for size in asked.batch_sizes:
        taken: dict[str, list[float]] = {"each": [], "once": []}
        for turn in range(asked.rounds):
            batch = calls(asked.count, turn)
            for name in ("each", "once") if turn % 2 else ("once", "each"):
                model._read_once = once if name == "once" else lambda inputs: inputs
                taken[name].append(seconds(model, batch, size))
        ratios = [ours / other for ours, other in zip(taken["once"], taken["each"], strict=True)]
        command = f"python -m bench.{BENCH} --count {asked.count} --rounds {asked.rounds} --threads {asked.threads}"
        digest = config_hash({"count": asked.count, "rounds": asked.rounds, "threads": asked.threads, "size": size})
        figures = {
            "each": ([1000 * one for one in taken["each"]], "ms", None),
            "once": ([1000 * one for one in taken["once"]], "ms", None),
            "ratio": (ratios, "of each", "every prompt read by itself"),
        }
        for name, (values, unit, against) in figures.items():
            spread, metric = statistics.stdev(values), f"{name}@batch={size}"
            row = (BENCH, metric, statistics.median(values), unit, (0,), spread, against, command, digest)
            rows.append(Row(*row, **around))
            print(f"{metric:<20} {statistics.median(values):.3g} {unit} ± {spread:.2g}")
    append(rows, asked.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=f"python -m bench.{BENCH}", description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 64], help="requests answered together")
    parser.add_argument("--count", type=int, default=64, help="requests of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    main(parser.parse_args())
