"""What a training step costs with a cached and a live teacher, and in TRL: `python -m bench.step_time runs/step_time`.

One pair of LLaVA-like models, of real shapes and random weights: a small CLIP tower (196 tokens an image), a 2-layer
projector, the first 4 (student) and 8 (teacher) layers of SmolLM2-135M with its whole vocabulary. Everything learns, in
fp32, one question on one image a row. The same rows, the same models and the same threads go to

    sft     mmkd, cross-entropy alone
    cached  mmkd, forward KL on what `mmkd cache` kept of the teacher
    live    mmkd, forward KL on the teacher in memory
    gold    TRL's GOLDTrainer on the stock LLaVA export of both, on the data's answers (lmbda=0), forward KL (beta=0)
    on_policy     mmkd, forward KL on eight tokens that the student samples itself, in every step
    distillation  TRL's DistillationTrainer, the same on the stock LLaVA export of both

Of TRL's trainers that distil vision-language models GOLD alone learns from given answers; DistillationTrainer always
has the student answer. Both are run as they come, but for activation checkpointing, which is off on both sides. Cases
run in turn, each in a process of its own, several rounds; ratios are taken within a round. Memory is the most that a
process held, libraries and weights included.

    pip install 'trl==1.16.0'     # for gold and distillation
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from bench.rows import RESULTS, ROOT, Row, append, config_hash, surroundings
from bench.token_losses import status_bytes
from mmkd.compose import compose, parts
from mmkd.config.schema import Config, StudentSection
from mmkd.data.sources import easyvqa
from mmkd.data.write_records import write_jsonl
from mmkd.errors import DataError
from mmkd.release.bundle import load_student
from mmkd.release.llava import to_llava
from mmkd.train.cache import cache_teacher
from mmkd.train.run import train

CASES = ("sft", "cached", "live", "gold", "on_policy", "distillation")
RATIOS = (("cached", "sft"), ("live", "sft"), ("live", "gold"), ("on_policy", "distillation"))
THEIRS = ("gold", "distillation")
SAMPLED = 8  # tokens of an answer
LAYERS = {"student": 4, "teacher": 8}
BATCH = 8
WARM_UP = 3  # steps that do not count
SIDE = 224
BENCH = "step_time"


def prepare(out: Path, steps: int) -> None:
    """Both models, as mmkd's and as stock LLaVA, and the rows."""
    tower = out / "tower"
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=SIDE, patch_size=16)).save_pretrained(tower)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(tower)
    for side, layers in LAYERS.items():
        section = StudentSection.model_validate(
            {
                "vision": {"source": f"hf:{tower.resolve()}"},
                "projector": {"kind": "mlp", "layers": 2},
                "language": {"source": "gguf:smollm2-135m", "keep_layers": layers},
                "template": "qa",
            }
        )
        composed = compose(section)
        composed.model.save_pretrained(out / side)
        composed.processor.save_pretrained(out / side)
        stock, processor = to_llava(*load_student(out / side))
        stock.save_pretrained(out / f"{side}-llava")
        processor.save_pretrained(out / f"{side}-llava")
    write_jsonl(out / "rows.jsonl", easyvqa("train", turns=None)[: BATCH * steps])


def ours(out: Path, case: str, run: Path, steps: int) -> Config:
    objectives = ["cross_entropy"] if case == "sft" else ["forward_kl"]
    cached = {"kind": "cached", "store": str(out / "store")} if case == "cached" else {"kind": "live"}
    stage = {
        "name": "tune",
        "steps": steps,
        "batch_size": BATCH,
        "trainable": ["vision", "projector", "language", "embeddings"],
        "learning_rate": 1e-5,
        "read": ["full"],
        "on_policy": {"share": 1.0, "max_new_tokens": SAMPLED} if case == "on_policy" else None,
    }
    return Config.model_validate(
        {
            "run": {"dir": str(run)},
            "student": {"init": str(out / "student"), "template": "qa"},
            "teacher": None if case == "sft" else cached | {"model": str(out / "teacher")},
            "objectives": [{"name": name} for name in objectives],
            "data": {"mixture": [{"source": "jsonl", "path": str(out / "rows.jsonl")}]},
            "stages": [stage],
            "training": {"precision": "fp32", "log_every": 1, "save_every": steps},
            "deepspeed": {"stage": 0},
        }
    )


def run_ours(out: Path, case: str, run: Path, steps: int) -> list[float]:
    """Seconds of each step."""
    train(ours(out, case, run, steps))
    ends = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [b - a for a, b in pairwise(ends)]


def run_trl(out: Path, case: str, run: Path, steps: int) -> list[float]:
    """Seconds of each step."""
    try:
        from trl import DistillationConfig, DistillationTrainer
        from trl.experimental.gold import GOLDConfig, GOLDTrainer
    except ImportError as error:
        raise DataError(f"the case {case} needs TRL: pip install 'trl==1.16.0', or leave it out of --cases.") from error
    from datasets import Dataset, Features, Image, List, Value
    from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainerCallback

    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            ends.append(time.time())

    said = List({"role": Value("string"), "content": Value("string")})
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    data = [
        {
            "images": [str((out / row["images"][0]).resolve())],
            "prompt": [{"role": "user", "content": row["turns"][0]["text"]}],
        }
        | ({"completion": [{"role": "assistant", "content": row["turns"][1]["text"]}]} if case == "gold" else {})
        for row in rows
    ]
    features = Features({"images": List(Image()), "prompt": said} | ({"completion": said} if case == "gold" else {}))
    settings = {
        "output_dir": str(run),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-5,
        "beta": 0.0,
        "temperature": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    student, teacher = (LlavaForConditionalGeneration.from_pretrained(out / f"{side}-llava") for side in LAYERS)
    trainer, arguments = (
        (GOLDTrainer, GOLDConfig(**settings, lmbda=0.0, max_length=None))
        if case == "gold"
        else (DistillationTrainer, DistillationConfig(**settings, max_completion_length=SAMPLED))
    )
    trainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=Dataset.from_list(data, features=features),
        processing_class=AutoProcessor.from_pretrained(out / "student-llava"),
        callbacks=[Ends()],
    ).train()
    return [b - a for a, b in pairwise(ends)]


def alone(out: Path, case: str, run: Path, steps: int) -> dict[str, float]:
    """Median seconds of a step, and the most MiB that the process held."""
    seconds = (run_trl if case in THEIRS else run_ours)(out, case, run, steps)
    return {"seconds": statistics.median(seconds[WARM_UP - 1 :]), "mib": status_bytes("VmHWM") / 2**20}


def in_a_process(out: Path, case: str, number: int, steps: int) -> dict[str, float]:
    run = out / "runs" / f"{case}-{number}"
    result = run.with_suffix(".json")
    if not result.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.step_time", str(out), "--alone", case, str(run), "--steps", str(steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise DataError(f"{case}: the process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(result.read_text())


def expected(out: Path) -> float:
    """1 + 2 N_t / (6 N_s): the live teacher's forward beside the student's forward and backward.

    N counts the weights that every position is multiplied with: tower, projector and decoder, without embeddings and
    head.
    """
    counts = []
    for side in ("teacher", "student"):
        found = parts(load_student(out / side)[0])
        counts.append(sum(p.numel() for part in ("vision", "projector", "language") for p in found[part]))
    return 1 + 2 * counts[0] / (6 * counts[1])


def figures(out: Path, cases: list[str], rounds: int, steps: int) -> list[tuple[str, float, str, float, str | None]]:
    """metric, value, unit, spread over rounds, against. A first run, of the first case, warms the machine up: a step of
    it was seen to take three times as long as in all later ones."""
    in_a_process(out, cases[0], 0, steps)
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(1, rounds + 1):
        for case in cases:
            found[case].append(in_a_process(out, case, number, steps))
            print(f"round {number} of {rounds}, {case}: {found[case][-1]}", flush=True)

    def row(metric: str, values: list[float], unit: str, against: str | None = None) -> Any:
        return metric, statistics.median(values), unit, statistics.stdev(values) if rounds > 1 else 0.0, against

    rows = []
    for case, runs in found.items():
        rows.append(row(f"step@{case}", [run["seconds"] for run in runs], "s"))
        rows.append(row(f"rows_per_second@{case}", [BATCH / run["seconds"] for run in runs], "1/s"))
        rows.append(row(f"memory@{case}", [run["mib"] for run in runs], "MiB"))
    for case, base in RATIOS:
        if case in found and base in found:
            pairs = list(zip(found[case], found[base], strict=True))
            times = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
            rows.append(row(f"time_of_{base}@{case}", times, f"of {base}", base))
            memory = [ours["mib"] / theirs["mib"] for ours, theirs in pairs]
            rows.append(row(f"memory_of_{base}@{case}", memory, f"of {base}", base))
    if "live" in found:
        rows.append(("time_expected@live", expected(out), "of sft", 0.0, "sft"))
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step_time", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of models, rows and runs; what is there is used again")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what is measured")
    parser.add_argument("--rounds", type=int, default=3, help="each runs every case once")
    parser.add_argument("--steps", type=int, default=12, help=f"of a run; the first {WARM_UP} do not count")
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "RUN"), help="one run, in this process")
    asked = parser.parse_args(arguments)
    if asked.alone:
        case, run = asked.alone
        measured = alone(asked.out, case, Path(run), asked.steps)
        Path(run).with_suffix(".json").write_text(json.dumps(measured))
        return
    around = surroundings()
    if not (asked.out / "rows.jsonl").exists():
        prepare(asked.out, asked.steps)
    if "cached" in asked.cases:
        cache_teacher(ours(asked.out, "cached", asked.out / "runs" / "cache", asked.steps), 16, 256, False, print)
    command = "python -m bench.step_time runs/step_time"
    hashed = config_hash({"layers": LAYERS, "batch": BATCH, "side": SIDE, "steps": asked.steps})
    append(
        [
            Row(BENCH, metric, value, unit, (0,), spread, against, command, hashed, **around)
            for metric, value, unit, spread, against in figures(asked.out, asked.cases, asked.rounds, asked.steps)
        ],
        RESULTS,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
