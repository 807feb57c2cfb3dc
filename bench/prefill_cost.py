"""What a cached image and a question on it cost by token count: `python -m bench.prefill_cost [--model large]`.

Operations and bytes are counted and depend on the architecture alone, so the models are composed and not trained; times
are measured in the same run, each round taking every count once.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from bench.rows import Row, append, config_hash, surroundings
from mmkd.compose import compose
from mmkd.config.load import load_config
from mmkd.config.schema import StudentSection, VisionSection
from mmkd.evaluate.costs import Cost, Latency, ask, count_costs, measure_latency

BENCHES = {"demo": "prefill_cost", "large": "prefill_cost_large"}
COUNTS = [1, 2, 4, 8, "full"]
QUESTION = "what color is the shape?"
FULL = "full vision, same model and run"


def student(model: str) -> StudentSection:
    """With random weights: the demo's student, or 8 layers of SmolLM2-135M on the 576 patches of a small ViT."""
    whole, cut = load_config("demo/teacher").student, load_config("demo/distill").student
    if model == "demo":
        vision, layers = whole.vision.model_copy(update={"pretrained": False}), cut.keep_layers
    else:
        vision = VisionSection(source="timm:vit_tiny_patch16_384", pretrained=False)  # 24 x 24 patches
        layers = 8
    language = whole.language.model_copy(update={"keep_layers": layers, "pretrained": False})
    return whole.model_copy(update={"voco": cut.voco, "language": language, "vision": vision})


def figures(
    costs: dict[str, Cost], times: dict[str, Latency]
) -> list[tuple[str, float, str, float | None, str | None]]:
    """(metric, value, unit, spread, against) of every figure."""
    found: list[tuple[str, float, str, float | None, str | None]] = []
    full = costs["full"]
    for name, cost in costs.items():
        case = name if name == "full" else f"k={name}"
        prefill, decode = times[name].ratios(times["full"])
        against = None if name == "full" else FULL
        found += [
            (f"kv_bytes@{case}", cost.kv_bytes, "bytes", None, None),
            (f"kv_share@{case}", cost.kv_bytes / full.kv_bytes, "of full", None, against),
            (f"encode@{case}", cost.encode_flops / 1e6, "MFLOP", None, None),
            (f"prefill@{case}", cost.prefill_flops / 1e6, "MFLOP", None, None),
            (f"prefill_share@{case}", cost.prefill_flops / full.prefill_flops, "of full", None, against),
            (f"cold_prefill@{case}", cost.cold_flops / 1e6, "MFLOP", None, None),
            (f"prefill_time@{case}", statistics.median(times[name].prefill), "ms", _spread(times[name].prefill), None),
            (f"prefill_time_ratio@{case}", statistics.median(prefill), "of full", _spread(prefill), against),
            (f"decode_time@{case}", statistics.median(times[name].decode), "ms", _spread(times[name].decode), None),
            (f"decode_time_ratio@{case}", statistics.median(decode), "of full", _spread(decode), against),
        ]
    return found


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(set(values)) > 1 else 0.0


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prefill_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="rounds of timing (default 60)")
    parser.add_argument("--model", choices=BENCHES, default="demo", help="demo (default): 16 vision tokens; large: 576")
    asked = parser.parse_args(arguments)
    around = surroundings()  # before anything is measured: the commit that runs
    section = student(asked.model)
    torch.manual_seed(0)
    composed = compose(section)
    model, question = composed.model.eval(), ask(composed.processor, QUESTION)
    costs = count_costs(model, question, COUNTS)
    times = measure_latency(model, question, COUNTS, asked.rounds)
    rows = [
        Row(
            bench=BENCHES[asked.model],
            metric=metric,
            value=value,
            unit=unit,
            seeds=(0,),
            spread=spread,
            against=against,
            command=f"python -m bench.prefill_cost --model {asked.model} --rounds {asked.rounds}",
            config_hash=config_hash(section, {"question": QUESTION}),
            **around,
        )
        for metric, value, unit, spread, against in figures(costs, times)
    ]
    append(rows)
    for row in rows:
        print(f"{row.metric:<28} {row.value:>14,.4g} {row.unit}" + (f" ± {row.spread:.2g}" if row.spread else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
