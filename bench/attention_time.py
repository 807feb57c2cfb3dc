"""A decoder's training step on a CPU by eager attention, against sdpa: `python -m bench.attention_time`.

The decoder has the sizes of six layers of SmolLM2-135M, random weights, and reads 1,024 tokens in rows of each length,
half of them padded by a fifth, so that the mask is explicit, as in training. A process has one thread, as a rank on a
machine of as many cores as ranks. Rounds take every case once; ratios are within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from bench.rows import RESULTS, Row, append, config_hash, surroundings
from mmkd.compose import compose
from mmkd.config.load import load_config

BENCH = "attention_time"
TOKENS = 1024
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def step(decoder: torch.nn.Module, embeddings: Tensor, mask: Tensor) -> float:
    """Seconds of forward and backward."""
    started = time.perf_counter()
    decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state.sum().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.attention_time", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are counted, after one that is not")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    around, lengths = surroundings(), " ".join(map(str, asked.lengths))
    command = f"python -m bench.attention_time --lengths {lengths} --rounds {asked.rounds}"
    section = load_config("scenes/teacher").student
    language = section.language.model_copy(update={"pretrained": False})
    vision = section.vision.model_copy(update={"pretrained": False})
    section = section.model_copy(update={"language": language, "vision": vision})
    rows = []
    for name, dtype in DTYPES.items():
        torch.manual_seed(0)
        decoder = compose(section, dtype).model.language_model.base_model
        for length in asked.lengths:
            embeddings = torch.randn(TOKENS // length, length, decoder.config.hidden_size, dtype=dtype)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
            mask[::2, length - length // 5 :] = 0
            times: dict[str, list[float]] = {"eager": [], "sdpa": []}
            for _ in range(asked.rounds + 1):
                for attention, found in times.items():
                    decoder.set_attn_implementation(attention)
                    found.append(step(decoder, embeddings, mask))
            eager, sdpa = (found[1:] for found in times.values())
            ratios = [one / other for one, other in zip(eager, sdpa, strict=True)]
            figures = {
                "eager": ([1e3 * one for one in eager], "ms", None),
                "sdpa": ([1e3 * one for one in sdpa], "ms", None),
                "ratio": (ratios, "of sdpa", "sdpa, same round"),
            }
            for what, (values, unit, against) in figures.items():
                mean, spread = statistics.fmean(values), statistics.stdev(values)
                case = f"{what}@{name} L={length}"
                digest = config_hash(section, {"tokens": TOKENS, "length": length, "dtype": name})
                rows.append(Row(BENCH, case, mean, unit, (0,), spread, against, command, digest, **around))
                print(f"{case:<22} {mean:>10,.3f} {unit} ± {spread:.2g}")
    append(rows, RESULTS)


if __name__ == "__main__":
    main()
