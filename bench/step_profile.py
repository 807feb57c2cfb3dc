"""Where the time of a training step goes, here and in TRL: `python -m bench.step_profile runs/step_time live gold`.

The cases, models and rows of bench.step_time, each in a process of its own under PyTorch's profiler. An operator's own
time is put down to

    head      products with the vocabulary's matrix, forward and backward, of student and teacher
    logits    everything else that reads a [.., ids] block: softmaxes, differences, copies
    rest      towers, projectors, decoders, optimiser
    outside   of any operator: Python, data, the profiler itself
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench.rows import RESULTS, ROOT, Row, append, config_hash, surroundings
from bench.step_time import CASES, THEIRS, prepare, run_ours, run_trl
from mmkd.errors import DataError

BENCH = "step_profile"
KINDS = ("head", "logits", "rest")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear")


def kind_of(operator: str, shapes: Sequence[Sequence[int]], ids: int) -> str:
    """One of KINDS. Embedding and its optimiser state are [ids, width], so a block of logits is one that ends in ids.

    Args:
        shapes: of the operator's inputs; empty for what is no tensor.
        ids: size of the vocabulary.
    """
    if operator in PRODUCTS and any(ids in shape for shape in shapes):
        return "head"
    return "logits" if any(shape and shape[-1] == ids for shape in shapes if len(shape) > 1) else "rest"


def profiled(out: Path, case: str, run: Path, steps: int) -> dict[str, float]:
    """Seconds a step of each kind, and of the whole step."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        taken = (run_trl if case in THEIRS else run_ours)(out, case, run, steps)
    ids = json.loads((out / "student" / "config.json").read_text())["text_config"]["vocab_size"]
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        found[kind_of(event.key, event.input_shapes or [], ids)] += event.self_cpu_time_total / 1e6 / steps
    if not found["head"]:
        raise DataError(f"{case}: no product with a matrix of {ids:,} ids was seen; see kind_of.")
    step = sum(taken) / len(taken)
    return {**found, "outside": max(0.0, step - sum(found.values())), "step": step}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step_profile", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of bench.step_time")
    parser.add_argument("cases", nargs="+", choices=[case for case in CASES if case != "cached"], help="what is read")
    parser.add_argument("--steps", type=int, default=6, help="of a run")
    parser.add_argument("--alone", type=Path, metavar="RUN", help="one case, in this process")
    asked = parser.parse_args(arguments)
    if asked.alone:
        found = profiled(asked.out, asked.cases[0], asked.alone, asked.steps)
        asked.alone.with_suffix(".json").write_text(json.dumps(found))
        return
    around = surroundings()
    if not (asked.out / "rows.jsonl").exists():
        prepare(asked.out, asked.steps)
    for case in asked.cases:
        run = asked.out / "profiles" / case
        run.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.step_profile", str(asked.out), case]
        command += ["--steps", str(asked.steps), "--alone", str(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"{case}: the process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        found = json.loads(run.with_suffix(".json").read_text())
        print(case, found)
        digest = config_hash({"case": case, "steps": asked.steps})
        again = f"python -m bench.step_profile {asked.out} {' '.join(asked.cases)}"
        append(
            [
                Row(BENCH, f"{name}@{case}", value, "s", (0,), None, None, again, digest, **around)
                for name, value in found.items()
            ],
            RESULTS,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
