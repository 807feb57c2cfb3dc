"""A student both of whose halves are of other families than its teacher's: labels, KD, and OFA-KD besides.

    python -m bench.halves runs/halves --families runs/families --teacher runs/scenes/teacher/model

The teacher of scenes sees by EfficientNet-Lite0, a CNN, and speaks by layers of SmolLM2, a Llama with its pre-trained
weights. The student sees by a ViT, which learned EasyVQA's shapes from a CNN by the method of its case (bench.families,
pair `easyvqa_lite0_vit`, same seed) and is frozen here, and speaks by a small GPT-NeoX of random weights with
SmolLM2's tokenizer. All cases take the same steps on the same rows of scenes in the same order. Scored on
`easyvqa_scenes` with full vision. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from transformers import GPTNeoXConfig

from bench.families import compared as towers
from bench.runs import METRICS, scored, trained
from bench.scores import add_new, conclude, of_run
from mmkd.contracts import Spec, adapter

BENCH = "halves"
PAIR = "easyvqa_lite0_vit"


@dataclass(frozen=True)
class Case:
    """How each half learns: a method of bench.families, and the objectives of the whole."""

    tower: str
    objectives: str


CASES = {
    "sft": Case("scratch", "[{name: cross_entropy}]"),
    "kd": Case("kd", "[{name: cross_entropy}, {name: forward_kl}]"),
    "ofa+kd": Case(
        "ofa", "[{name: cross_entropy}, {name: forward_kl}, {name: ofa_logits, form: released, weight: 1.0}]"
    ),
}
PAIRS = [("ofa+kd", "kd"), ("kd", "sft"), ("ofa+kd", "sft")]
STAGE = (
    "stages=[{name: learn, steps: 800, trainable: [projector, language, embeddings], learning_rate: 1.0e-3, "
    "batch_size: 16, read: [full]}]"
)


def decoder(folder: Path) -> Path:
    """A folder that holds a small GPT-NeoX without weights, and SmolLM2's tokenizer."""
    spec = Spec.parse("gguf:smollm2-135m")
    tokenizer = adapter("language", spec)().tokenizer(spec)
    tokenizer.save_pretrained(folder)
    GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder


def settings_of(case: str, seed: int, out: Path, families: Path, teacher: Path) -> list[str]:
    tower = families / f"{PAIR}-{CASES[case].tower}-{seed}" / "model"
    seen = f"source: 'timm:local-dir:{tower}', image_size: 128, taps: [2, 4, 6], grid: [4, 4], standardize: true"
    return [
        f"student.vision={{{seen}}}",
        f"student.language={{source: 'hf:{out / 'decoder'}', pretrained: false}}",
        "data.cache_features=false",  # a live teacher has a tower of its own
        f"objectives={CASES[case].objectives}",
        "teacher=null" if case == "sft" else f"teacher={{kind: live, model: {teacher}}}",
        STAGE,
    ]


def compared(out: Path, families: Path, teacher: Path, seeds: list[int], cases: list[str]) -> None:
    """Train, score, and append what has no row yet. Seeds outermost: each is complete early."""
    towers(families, [PAIR], sorted({CASES[case].tower for case in cases}), seeds)
    decoder(out / "decoder")
    for seed in seeds:
        for case in cases:
            settings = settings_of(case, seed, out, families, teacher)
            job = "train" if case == "sft" else "distill"
            run = trained(job, "scenes/teacher", out / f"{case}-{seed}", seed, settings)
            scored(run, ["full"])
            add_new(BENCH, [row for metric in METRICS for row in of_run(BENCH, case, run, metric)])
    conclude(BENCH, [pair for pair in PAIRS if set(pair) <= set(cases)] if len(seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.halves", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--families", type=Path, required=True, help="folder of bench.families' runs, with the towers")
    parser.add_argument("--teacher", type=Path, required=True, help="model folder of the teacher of scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to train")
    asked = parser.parse_args()
    compared(asked.out, asked.families, asked.teacher, asked.seeds, asked.cases)
